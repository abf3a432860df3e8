/* What libmlxd relies on in CUDA and NCCL, called directly: order on streams, the legacy default
 * stream, kinds of memory, nonblocking communicators, groups, split, abort. Over the stand-ins it
 * shows that they keep it, over a GPU that CUDA and NCCL do. Over the stand-ins also that wrong use
 * is noticed.
 *
 *     nccl_premises RANKS
 *     nccl_premises facts    what is here: device, driver, NCCL */
#include "nccl_direct.h"

#include <errno.h>
#include <sys/wait.h>

static int rank;
static int size;
static void *comm;

#define COUNT 100003

static int32_t *host; /* pinned */

static void fill(void *memory, int32_t value, void *stream) {
    for (size_t i = 0; i < COUNT; i++) {
        host[i] = value + (int32_t)(i % 97);
    }
    CUDA(cuda.to_device_async((device_pointer)(uintptr_t)memory, host, COUNT * sizeof *host,
                              stream));
    CUDA(cuda.stream_synchronize(stream));
    memset(host, 0x77, COUNT * sizeof *host);
}

/* The sum over all ranks of what fill() wrote with the values base, base + 1 ... */
static int32_t wrong_sums(int32_t base) {
    int32_t wrong = 0;
    for (size_t i = 0; i < COUNT; i++) {
        int32_t want = size * (base + (int32_t)(i % 97)) + size * (size - 1) / 2;
        wrong += host[i] != want;
    }
    return wrong;
}

static void read_behind(const void *memory, void *stream) {
    CUDA(cuda.to_host_async(host, (device_pointer)(uintptr_t)memory, COUNT * sizeof *host, stream));
}

static void all_sum(void *input, void *output, void *stream) {
    int result = nccl.all_reduce(input, output, COUNT, NCCL_INT32, NCCL_SUM, comm, stream);
    CHECK(nccl_settled(result, comm) == 0);
}

/* What is put on a stream behind an operation sees its result, without a look in between. */
static void later_work_sees_the_result(void *stream, void *input, void *output) {
    for (int32_t round = 0; round < 5; round++) {
        fill(input, 100 * round + rank, stream);
        all_sum(input, output, stream);
        read_behind(output, stream);
        CUDA(cuda.stream_synchronize(stream));
        CHECK(wrong_sums(100 * round) == 0);
    }
}

/* The legacy default stream and blocking streams wait for each other. */
static void default_stream_is_ordered(void *input, void *output) {
    void *stream = cuda_stream_new(true);
    fill(input, 7 + rank, stream);
    all_sum(input, output, NULL);
    read_behind(output, stream);
    CUDA(cuda.stream_synchronize(stream));
    CHECK(wrong_sums(7) == 0);
    fill(input, 9 + rank, stream);
    all_sum(input, output, stream);
    read_behind(output, NULL);
    CUDA(cuda.stream_synchronize(NULL));
    CHECK(wrong_sums(9) == 0);
    CUDA(cuda.stream_destroy(stream));
}

static void nap(void *flag) {
    sleep_ms(50);
    *(volatile int *)flag = 1;
}

/* A nonblocking stream does not wait for the legacy one, unless an event says so. */
static void events_order_streams(void) {
    void *stream = cuda_stream_new(false);
    void *event = NULL;
    volatile int *flag = pinned_alloc(sizeof *flag);
    *flag = 0;
    CUDA(cuda.event_create(&event, 2));
    CUDA(cuda.launch_host(NULL, nap, (void *)(uintptr_t)flag));
    CUDA(cuda.stream_synchronize(stream));
    CHECK(cuda.stream_query(stream) == 0);
    CUDA(cuda.event_record(event, NULL));
    CUDA(cuda.stream_wait(stream, event, 0));
    CUDA(cuda.stream_synchronize(stream));
    CHECK(*flag == 1);
    CUDA(cuda.event_destroy(event));
    CUDA(cuda.stream_destroy(stream));
    CUDA(cuda.free_pinned((void *)(uintptr_t)flag));
}

/* Every rank sends to every rank, itself too, in one group. */
static void groups_exchange(void *stream) {
    int32_t *input = device_alloc((size_t)size * 4);
    int32_t *output = device_alloc((size_t)size * 4);
    int32_t values[64];
    for (int peer = 0; peer < size; peer++) {
        values[peer] = rank * 100 + peer;
    }
    device_write(input, values, (size_t)size * 4);
    CHECK(nccl.group_start() == 0);
    for (int peer = 0; peer < size; peer++) {
        CHECK(nccl.send(input + peer, 4, NCCL_UINT8, peer, comm, stream) == 0);
        CHECK(nccl.recv(output + peer, 4, NCCL_UINT8, peer, comm, stream) == 0);
    }
    CHECK(nccl_settled(nccl.group_end(), comm) == 0);
    CUDA(cuda.stream_synchronize(stream));
    device_read(values, output, (size_t)size * 4);
    for (int peer = 0; peer < size; peer++) {
        CHECK(values[peer] == peer * 100 + rank);
    }
    device_free(input);
    device_free(output);
}

static void split_makes_halves(void *input, void *output, void *stream) {
    void *whole = comm;
    void *half = NULL;
    struct nccl_config config = nccl_configuration(false);
    int all = size, own = rank;
    CHECK(nccl_settled(nccl.split(whole, rank % 2, -rank, &half, &config), whole) == 0);
    REQUIRE(half != NULL);
    comm = half;
    size = (all + 1 - own % 2) / 2;
    rank = own / 2;
    fill(input, 3 + rank, stream);
    all_sum(input, output, stream);
    read_behind(output, stream);
    CUDA(cuda.stream_synchronize(stream));
    CHECK(wrong_sums(3) == 0);
    CHECK(nccl_settled(nccl.finalize(half), half) == 0);
    CHECK(nccl.destroy(half) == 0);
    void *none = (void *)1;
    CHECK(nccl_settled(nccl.split(whole, -1, 0, &none, &config), whole) == 0);
    CHECK(none == NULL);
    comm = whole;
    size = all;
    rank = own;
}

/* An operation that nobody answers goes on until it is aborted; the stream can be used afterwards.
 */
static void abort_releases_streams(void *input, void *output, void *stream) {
    if (rank == 0 && size > 1) {
        all_sum(input, output, stream);
        sleep_ms(100);
        CHECK(cuda.stream_query(stream) == 600);
    }
    CHECK(nccl.abort(comm) == 0);
    CUDA(cuda.stream_synchronize(stream));
    fill(input, 1, stream);
    read_behind(input, stream);
    CUDA(cuda.stream_synchronize(stream));
    CHECK(host[0] == 1 && host[COUNT - 1] == 1 + (COUNT - 1) % 97);
}

static void kinds_of_memory(void) {
    void *function = dlsym(cuda.library, "cuPointerGetAttribute");
    int (*attribute)(void *, int, device_pointer);
    int here = 0;
    void *device = device_alloc(16), *pinned = pinned_alloc(16), *managed = managed_alloc(16);
    unsigned kind = 0, is_managed = 0;
    REQUIRE(function != NULL);
    memcpy(&attribute, &function, sizeof attribute);
    CHECK(attribute(&kind, 2, (device_pointer)(uintptr_t)&here) == 1);
    CHECK(attribute(&kind, 2, (device_pointer)(uintptr_t)device) == 0 && kind == 2);
    CHECK(attribute(&kind, 2, (device_pointer)(uintptr_t)pinned) == 0 && kind == 1);
    CHECK(attribute(&is_managed, 8, (device_pointer)(uintptr_t)managed) == 0 && is_managed == 1);
    CHECK(attribute(&is_managed, 8, (device_pointer)(uintptr_t)device) == 0 && is_managed == 0);
    device_free(device);
    device_free(managed);
    CUDA(cuda.free_pinned(pinned));
}

static int rank_main(nccl_id id) {
    char host_id[32];
    check_rank = rank;
    int devices = 0;
    device_find();
    nccl_find();
    CUDA(cuda.count(&devices));
    if (devices < size) {
        /* Several ranks on one device must take themselves for different hosts. */
        snprintf(host_id, sizeof host_id, "host-%d", rank);
        setenv("NCCL_HOSTID", host_id, 1);
    }
    device_use(rank % devices);
    struct nccl_config config = nccl_configuration(false);
    int result = nccl.init(&comm, size, id, rank, &config);
    REQUIRE(nccl_settled(result, comm) == 0);
    host = pinned_alloc(COUNT * sizeof *host);
    void *input = device_alloc(COUNT * sizeof *host);
    void *output = device_alloc(COUNT * sizeof *host);
    void *stream = cuda_stream_new(true);
    void *other = cuda_stream_new(false);

    kinds_of_memory();
    events_order_streams();
    later_work_sees_the_result(stream, input, output);
    later_work_sees_the_result(other, input, output);
    later_work_sees_the_result(NULL, input, output);
    default_stream_is_ordered(input, output);
    groups_exchange(stream);
    split_makes_halves(input, output, stream);
    abort_releases_streams(input, output, stream);
    return check_finish("nccl_premises");
}

/* --- wrong use that only the stand-ins notice
 * -------------------------------------------------------- */

enum misuse { HOST_POINTER, TOO_SHORT, ABORT_TWICE, USE_AFTER_ABORT, HOST_TOUCHES_DEVICE, MISUSES };

static void misuse(enum misuse which) {
    static int32_t here[16];
    struct nccl_config config = nccl_configuration(false);
    nccl_id id;
    device_use(0);
    REQUIRE(nccl.unique_id(&id) == 0);
    int result = nccl.init(&comm, 1, id, 0, &config);
    REQUIRE(nccl_settled(result, comm) == 0);
    int32_t *device = device_alloc(sizeof here);
    switch (which) {
    case HOST_POINTER:
        nccl_settled(nccl.all_reduce(here, device, 16, NCCL_INT32, NCCL_SUM, comm, NULL), comm);
        break;
    case TOO_SHORT:
        nccl_settled(nccl.all_reduce(device, device, 17, NCCL_INT32, NCCL_SUM, comm, NULL), comm);
        break;
    case ABORT_TWICE:
        nccl.abort(comm);
        nccl.abort(comm);
        break;
    case USE_AFTER_ABORT:
        nccl.abort(comm);
        nccl.all_reduce(device, device, 16, NCCL_INT32, NCCL_SUM, comm, NULL);
        break;
    default:
        device[0] = 1;
    }
    CUDA(cuda.stream_synchronize(NULL));
}

static void misuse_is_noticed(enum misuse which) {
    int status = 0;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        device_find();
        nccl_find();
        misuse(which);
        _exit(0);
    }
    REQUIRE(waitpid(pid, &status, 0) == pid);
    CHECK(WIFSIGNALED(status) &&
          WTERMSIG(status) == (which == HOST_TOUCHES_DEVICE ? SIGSEGV : SIGABRT));
}

/* One line, for reports. */
static int facts(void) {
    char name[128];
    int devices = 0, device = 0, driver = 0, version = 0;
    device_find();
    nccl_find();
    CUDA(cuda.count(&devices));
    CUDA(cuda.device_get(&device, 0));
    CUDA(cuda.name(name, sizeof name, device));
    CUDA(cuda.driver_version(&driver));
    REQUIRE(nccl.version(&version) == 0);
    printf("%d x %s, CUDA driver for %d.%d, NCCL %d.%d.%d\n", devices, name, driver / 1000,
           driver % 1000 / 10, version / 10000, version / 100 % 100, version % 100);
    return 0;
}

int main(int argc, char **argv) {
    check_start(120);
    if (argc > 1 && strcmp(argv[1], "facts") == 0) {
        return facts();
    }
    size = argc > 1 ? atoi(argv[1]) : 1;
    REQUIRE(size >= 1 && size <= 64);
    /* Looked at in a child: CUDA does not survive a fork. */
    pid_t looks = fork();
    if (looks == 0) {
        device_find();
        nccl_find();
        exit(device_is_fake() ? 1 : 0);
    }
    int status = 0, failed = 0;
    REQUIRE(waitpid(looks, &status, 0) == looks && WIFEXITED(status));
    if (WEXITSTATUS(status) == SKIPPED) {
        return SKIPPED;
    }
    bool fake = WEXITSTATUS(status) == 1;
    nccl_find();
    nccl_id id;
    REQUIRE(nccl.unique_id(&id) == 0);
    for (rank = 0; rank < size; rank++) {
        fflush(NULL);
        if (fork() == 0) {
            exit(rank_main(id));
        }
    }
    while (waitpid(-1, &status, 0) > 0 || errno == EINTR) {
        failed += status != 0;
    }
    CHECK(failed == 0);
    for (int which = 0; fake && size == 1 && which < MISUSES; which++) {
        misuse_is_noticed((enum misuse)which);
    }
    check_rank = -1;
    return check_finish("nccl_premises");
}
