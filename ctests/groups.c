/* mlxd_group_split: who ends up where, groups of groups, parents and children side by side. */
#include "check.h"

static mlxd_group *world;
static int rank;
static int size;

/* The sum over a group of 1 for each member, and of their world ranks. */
static void check_members(mlxd_group *group, int want_rank, int want_size, int want_sum) {
    CHECK(mlxd_group_rank(group) == want_rank);
    CHECK(mlxd_group_size(group) == want_size);
    CHECK(mlxd_group_status(group) == MLXD_OK);
    CHECK(strcmp(mlxd_group_backend(group), mlxd_group_backend(world)) == 0);
    int32_t input[2] = {1, rank};
    int32_t output[2] = {0, 0};
    REQUIRE_OK(mlxd_all_sum(group, input, output, 2, MLXD_INT32, NULL));
    CHECK(output[0] == want_size);
    CHECK(output[1] == want_sum);
}

static int sum_to(int last) {
    return last * (last + 1) / 2;
}

/* World ranks of this rank's parity. */
static int parity_size(void) {
    return (size - rank % 2 + 1) / 2;
}

static int parity_sum(void) {
    int sum = 0;
    for (int i = rank % 2; i < size; i += 2) {
        sum += i;
    }
    return sum;
}

static mlxd_group *split(mlxd_group *parent, int32_t color, int32_t key) {
    mlxd_group *child = NULL;
    REQUIRE_OK(mlxd_group_split(parent, color, key, &child));
    return child;
}

static void by_color(void) {
    mlxd_group *child = split(world, rank % 2, 0);
    REQUIRE(child != NULL);
    check_members(child, rank / 2, parity_size(), parity_sum()); /* equal keys: the old order */
    mlxd_group_free(child);

    child = split(world, 1000000 + rank, 0); /* everyone alone */
    REQUIRE(child != NULL);
    check_members(child, 0, 1, rank);
    mlxd_group_free(child);

    child = split(world, INT32_MAX, INT32_MAX);
    REQUIRE(child != NULL);
    check_members(child, rank, size, sum_to(size - 1));
    mlxd_group_free(child);
}

static void by_key(void) {
    mlxd_group *child = split(world, 0, size - rank);
    REQUIRE(child != NULL);
    check_members(child, size - 1 - rank, size, sum_to(size - 1));
    /* The order counts for data, too. */
    int32_t ranks[64];
    REQUIRE(size <= 64);
    REQUIRE_OK(mlxd_all_gather(child, &rank, ranks, 1, MLXD_INT32, NULL));
    for (int i = 0; i < size; i++) {
        CHECK(ranks[i] == size - 1 - i);
    }
    mlxd_group_free(child);

    /* Two keys, many ties: first the odd old ranks, then the even ones, each in the old order. */
    child = split(world, 3, rank % 2 != 0 ? 5 : 7);
    REQUIRE(child != NULL);
    int odd = size / 2;
    check_members(child, rank % 2 != 0 ? rank / 2 : odd + rank / 2, size, sum_to(size - 1));
    mlxd_group_free(child);

    /* A negative key stands for the old rank: rank 0 goes last, the others keep their order. */
    child = split(world, 0, rank == 0 ? size : -1 - rank);
    REQUIRE(child != NULL);
    check_members(child, rank == 0 ? size - 1 : rank - 1, size, sum_to(size - 1));
    mlxd_group_free(child);
}

static void no_color(void) {
    /* Not NULL before, NULL afterwards. */
    mlxd_group *child = world;
    REQUIRE_OK(mlxd_group_split(world, rank == 0 ? -1 : 4, 0, &child));
    if (rank == 0) {
        CHECK(child == NULL);
    } else {
        REQUIRE(child != NULL && child != world);
        check_members(child, rank - 1, size - 1, sum_to(size - 1));
        mlxd_group_free(child);
    }
    child = world;
    REQUIRE_OK(mlxd_group_split(world, -1, 0, &child));
    CHECK(child == NULL);
}

/* Refused at once, on this rank alone, and the group goes on. */
static void invalid(void) {
    mlxd_group *child = world;
    CHECK_INVALID(mlxd_group_split(world, -2, 0, &child));
    CHECK_INVALID(mlxd_group_split(world, INT32_MIN, 0, &child));
    CHECK(child == world || child == NULL);
    CHECK_INVALID(mlxd_group_split(world, 0, 0, NULL));
    CHECK_INVALID(mlxd_group_split(NULL, 0, 0, &child));
    CHECK(mlxd_group_status(world) == MLXD_OK);
    check_members(world, rank, size, sum_to(size - 1));
}

static void split_of_split(void) {
    mlxd_group *reversed = split(world, 0, size - rank);
    REQUIRE(reversed != NULL);
    mlxd_group *parity = split(reversed, rank % 2, -1);
    REQUIRE(parity != NULL);
    int members = parity_size();
    check_members(parity, members - 1 - rank / 2, members, parity_sum());
    mlxd_group *alone = split(parity, mlxd_group_rank(parity), 0);
    REQUIRE(alone != NULL);
    check_members(alone, 0, 1, rank);

    /* All four side by side, in turn. */
    for (int round = 0; round < 5; round++) {
        check_members(world, rank, size, sum_to(size - 1));
        check_members(parity, members - 1 - rank / 2, members, parity_sum());
        check_members(alone, 0, 1, rank);
        check_members(reversed, size - 1 - rank, size, sum_to(size - 1));
    }

    /* A child needs its parents no longer. */
    mlxd_group_free(reversed);
    check_members(parity, members - 1 - rank / 2, members, parity_sum());
    mlxd_group_free(parity);
    check_members(alone, 0, 1, rank);
    mlxd_group_free(alone);
}

/* Any two members of a child can talk, also those who were no neighbours before. */
static void pairs_in_child(void) {
    mlxd_group *child = split(world, rank % 2, size - rank);
    REQUIRE(child != NULL);
    int me = mlxd_group_rank(child);
    int members = mlxd_group_size(child);
    for (int distance = 1; distance < members; distance++) {
        int to = (me + distance) % members;
        int from = (me + members - distance) % members;
        int32_t got = -1;
        REQUIRE_OK(mlxd_send_recv(child, &me, 1, to, &got, 1, from, MLXD_INT32, NULL));
        CHECK(got == from);
    }
    mlxd_group_free(child);
}

/* Many groups, made and freed: nothing is left behind that the next one trips over. */
static void many(void) {
    for (int round = 0; round < 20; round++) {
        mlxd_group *child = split(world, (rank + round) % 3, round);
        REQUIRE(child != NULL);
        REQUIRE_OK(mlxd_barrier(child, NULL));
        mlxd_group_free(child);
    }
}

/* Two handles of one world: one order of calls. Freeing one leaves the other. */
static void second_handle(void) {
    if (gather_folder() != NULL) {
        return; /* a world of options is not handed out again */
    }
    mlxd_group *again = mlxd_init(true, test_backend());
    REQUIRE(again != NULL);
    check_members(again, rank, size, sum_to(size - 1));
    check_members(world, rank, size, sum_to(size - 1));
    mlxd_group_free(again);
    check_members(world, rank, size, sum_to(size - 1));
}

int main(void) {
    check_start(120);
    world = world_start();
    rank = mlxd_group_rank(world);
    size = mlxd_group_size(world);

    by_color();
    by_key();
    no_color();
    invalid();
    split_of_split();
    pairs_in_child();
    many();
    second_handle();

    mlxd_group_free(world);
    return check_finish("groups");
}
