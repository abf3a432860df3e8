/* Everything that may be wrong with the environment of one process: CONFIG, strictly and not, with
 * a message that names the file, the variable or the value. */
#include "starts.h"

static void check_report_names(const struct report *report, const char *text, const char *label) {
    bool names = strstr(report->message, text) != NULL;
    if (!names) {
        fprintf(stderr, "%s: \"%s\" does not name \"%s\"\n", label, report->message, text);
    }
    CHECK(names);
}

/* Starts alone with these variables, strictly and not: CONFIG both times, naming `word`. */
static void check_config_error(const struct settings *variables, const char *word,
                               const char *label) {
    static const char *const modes[] = {"strict", "lenient"};
    for (int mode = 0; mode < 2; mode++) {
        double begin = seconds();
        struct child child = start(modes[mode], "ring", variables);
        struct report report = finish(&child);
        if (report.status != MLXD_ERROR_CONFIG) {
            fprintf(stderr, "%s, %s: %s \"%s\"\n", label, modes[mode],
                    mlxd_status_name(report.status), report.message);
        }
        CHECK(report.status == MLXD_ERROR_CONFIG);
        check_report_names(&report, word, label);
        CHECK(seconds() - begin < SOON_S);
    }
}

/* Rank 0 with this text as its hostfile. */
static void malformed_hostfiles(void) {
    static const struct {
        const char *label;
        const char *content;
        const char *word; /* beside the file's name */
    } cases[] = {
        {"no JSON", "{nope", NULL},
        {"cut off", "[[\"127.0.0.1:20000\"], [\"127.0.0.1:200", NULL},
        {"two documents", "[[\"127.0.0.1:20000\"]] []", NULL},
        {"a string", "\"127.0.0.1:20000\"", NULL},
        {"a number", "17", NULL},
        {"null", "null", NULL},
        {"a list of numbers", "[1, 2]", NULL},
        {"numbers in lists", "[[1], [2]]", NULL},
        {"nulls in lists", "[[null], [null]]", NULL},
        {"no address for rank 1", "[[\"127.0.0.1:20000\"], []]", "1"},
        {"port too large", "[[\"127.0.0.1:70000\"], [\"127.0.0.1:20001\"]]", "70000"},
        {"port below zero", "[[\"127.0.0.1:-5\"], [\"127.0.0.1:20001\"]]", "-5"},
        {"port is a word", "[[\"127.0.0.1:http\"], [\"127.0.0.1:20001\"]]", "http"},
        {"port missing", "[[\"127.0.0.1\"], [\"127.0.0.1:20001\"]]", "127.0.0.1"},
        {"port empty", "[[\"127.0.0.1:\"], [\"127.0.0.1:20001\"]]", "127.0.0.1:"},
        {"address empty", "[[\"\"], [\"127.0.0.1:20001\"]]", NULL},
        {"bracket open", "[[\"[::1:20000\"], [\"127.0.0.1:20001\"]]", "[::1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[128];
        write_file("malformed.json", cases[i].content, path, sizeof path);
        struct settings variables = {.count = 0};
        SETTING(&variables, "MLX_RANK=0");
        SETTING(&variables, "MLX_HOSTFILE=%s", path);
        check_config_error(&variables, "malformed.json", cases[i].label);
        if (cases[i].word != NULL) {
            check_config_error(&variables, cases[i].word, cases[i].label);
        }
    }
    struct settings missing = {.count = 0};
    SETTING(&missing, "MLX_RANK=0");
    SETTING(&missing, "MLX_HOSTFILE=%s/absent.json", folder);
    check_config_error(&missing, "absent.json", "missing hostfile");
    struct settings directory = {.count = 0};
    SETTING(&directory, "MLX_RANK=0");
    SETTING(&directory, "MLX_HOSTFILE=%s", folder);
    check_config_error(&directory, folder, "a folder as hostfile");
}

static void wrong_variables(void) {
    char path[128];
    write_file("two.json", "[[\"127.0.0.1:20000\"], [\"127.0.0.1:20001\"]]", path, sizeof path);
    static const struct {
        const char *list[6];
        const char *word;
    } cases[] = {
        {{"MLX_RANK=2", "HOSTS", NULL}, "2"},
        {{"MLX_RANK=2", "HOSTS", NULL}, "MLX_RANK"},
        {{"MLX_RANK=-1", "HOSTS", NULL}, "-1"},
        {{"MLX_RANK=abc", "HOSTS", NULL}, "abc"},
        {{"MLX_RANK=1.5", "HOSTS", NULL}, "1.5"},
        {{"MLX_RANK=1x", "HOSTS", NULL}, "1x"},
        {{"MLX_RANK=99999999999999999999", "HOSTS", NULL}, "99999999999999999999"},
        {{"MLXD_RANK=abc", "MLX_RANK=0", "HOSTS", NULL}, "MLXD_RANK"},
        {{"HOSTS", NULL}, "MLX_RANK"},
        /* A world of more than one is announced, and nothing tells how to meet it. */
        {{"WORLD_SIZE=2", NULL}, "WORLD_SIZE"},
        {{"MLX_WORLD_SIZE=2", NULL}, "WORLD_SIZE"},
        {{"MLXD_WORLD_SIZE=2", NULL}, "MLXD_WORLD_SIZE"},
        {{"MLXD_WORLD_SIZE=2", "MLXD_RANK=0", NULL}, "MLXD_COORDINATOR"},
        {{"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", NULL}, "MASTER_PORT"},
        {{"MLXD_COORDINATOR=127.0.0.1:20000", "MLXD_WORLD_SIZE=2", NULL}, "MLXD_RANK"},
        {{"MLXD_COORDINATOR=127.0.0.1:20000", "MLXD_RANK=0", NULL}, "MLXD_WORLD_SIZE"},
        {{"MLXD_COORDINATOR=127.0.0.1:20000", "MLXD_RANK=2", "MLXD_WORLD_SIZE=2", NULL}, "2"},
        {{"MLXD_COORDINATOR=127.0.0.1:20000", "MLXD_RANK=0", "MLXD_WORLD_SIZE=0", NULL},
         "MLXD_WORLD_SIZE"},
        {{"MLXD_COORDINATOR=127.0.0.1:20000", "MLXD_RANK=0", "MLXD_WORLD_SIZE=-2", NULL},
         "MLXD_WORLD_SIZE"},
        {{"MLXD_COORDINATOR=127.0.0.1:20000", "MLXD_RANK=0", "MLXD_WORLD_SIZE=two", NULL},
         "MLXD_WORLD_SIZE"},
        {{"MLXD_COORDINATOR=127.0.0.1:99999", "MLXD_RANK=0", "MLXD_WORLD_SIZE=2", NULL}, "99999"},
        {{"MLXD_COORDINATOR=127.0.0.1", "MLXD_RANK=0", "MLXD_WORLD_SIZE=2", NULL},
         "MLXD_COORDINATOR"},
        {{"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=x", NULL}, "MASTER_PORT"},
        {{"RANK=x", "WORLD_SIZE=2", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=20000", NULL}, "RANK"},
        {{"MLX_RANK=0", "HOSTS", "MLXD_CONNECT_TIMEOUT_MS=soon", NULL}, "MLXD_CONNECT_TIMEOUT_MS"},
        {{"MLX_RANK=0", "HOSTS", "MLXD_TIMEOUT_MS=-1", NULL}, "MLXD_TIMEOUT_MS"},
        {{"MLX_RANK=0", "HOSTS", "MLXD_TRANSPORT=pigeon", NULL}, "MLXD_TRANSPORT"},
        {{"MLX_RANK=0", "HOSTS", "MLXD_CHECKSUM=2", NULL}, "MLXD_CHECKSUM"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct settings variables = {.count = 0};
        for (int j = 0; cases[i].list[j] != NULL; j++) {
            if (strcmp(cases[i].list[j], "HOSTS") == 0) {
                SETTING(&variables, "MLX_HOSTFILE=%s", path);
            } else {
                SETTING(&variables, "%s", cases[i].list[j]);
            }
        }
        char label[160];
        snprintf(label, sizeof label, "%s %s", cases[i].list[0],
                 cases[i].list[1] != NULL ? cases[i].list[1] : "");
        check_config_error(&variables, cases[i].word, label);
    }
}

int main(int argc, char **argv) {
    int end;
    if (starts_begin(argc, argv, &end)) {
        return end;
    }
    malformed_hostfiles();
    wrong_variables();
    return starts_finish("misconfigured");
}
