/* Test support: this program again as a child process, with an environment of its own, which
 * reports through a pipe how it fared. For tests that a launcher would disturb. */
#ifndef PROCESSES_H
#define PROCESSES_H

#include "check.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>

/* Where a child finds its end of the pipe. */
#define REPORT_FD 9

/* Longest list of arguments or variables that a test passes on. */
#define CHILD_MAX 16

/* What a child tells, in one write shorter than PIPE_BUF. */
struct report {
    mlxd_status status;
    int32_t rank;
    int32_t size;
    double at; /* seconds() */
    char backend[16];
    char message[1024];
};

struct child {
    pid_t pid;
    int from;
};

/* Every variable that a start reads; a child begins without them. */
static const char *const start_variables[] = {
    "MLX_RANK",
    "MLXD_RANK",
    "MLX_HOSTFILE",
    "MLXD_HOSTFILE",
    "MLX_WORLD_SIZE",
    "MLXD_WORLD_SIZE",
    "MLXD_COORDINATOR",
    "NCCL_HOST_IP",
    "NCCL_PORT",
    "MLX_JACCL_COORDINATOR",
    "JACCL_COORDINATOR",
    "MLX_IBV_DEVICES",
    "JACCL_IBV_DEVICES",
    "MLX_JACCL_RING",
    "JACCL_RING",
    "JACCL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "TORCHELASTIC_USE_AGENT_STORE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
    "SLURM_STEP_ID",
    "SLURM_STEPID",
    "SLURM_JOB_ID",
    "SLURM_NODELIST",
    "SLURM_STEP_NODELIST",
    "JOB_COMPLETION_INDEX",
    "PMI_RANK",
    "PMI_SIZE",
    "PMIX_RANK",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "MLXD_CONNECT_TIMEOUT_MS",
    "MLXD_TIMEOUT_MS",
    "MLXD_RECV_TIMEOUT_MS",
    "MLXD_PEER_TIMEOUT_MS",
    "MLXD_SECRET",
    "MLXD_BIND",
    "MLXD_TRANSPORT",
    "MLXD_HOST_ID",
    "MLXD_FLIGHT_RECORDER",
};

static inline void start_variables_clear(void) {
    for (size_t i = 0; i < sizeof start_variables / sizeof start_variables[0]; i++) {
        unsetenv(start_variables[i]);
    }
}

/* Starts this program with these arguments, and these variables ("NAME=value") beside the cleared
 * ones; both lists end with NULL. */
static inline struct child child_start(const char *program, const char *const *arguments,
                                       const char *const *variables) {
    int ends[2];
    REQUIRE(pipe(ends) == 0);
    fflush(NULL);
    pid_t pid = fork();
    REQUIRE(pid >= 0);
    if (pid == 0) {
        char *argv[CHILD_MAX + 2] = {(char *)(uintptr_t)program};
        for (int i = 0; i < CHILD_MAX && arguments[i] != NULL; i++) {
            argv[i + 1] = (char *)(uintptr_t)arguments[i];
        }
        signal(SIGPIPE, SIG_DFL); /* the library must not depend on its being ignored */
        start_variables_clear();
        for (int i = 0; variables[i] != NULL; i++) {
            char name[64];
            const char *equals = strchr(variables[i], '=');
            snprintf(name, sizeof name, "%.*s", (int)(equals - variables[i]), variables[i]);
            setenv(name, equals + 1, 1);
        }
        close(ends[0]); /* first: it may have that number */
        dup2(ends[1], REPORT_FD);
        if (ends[1] != REPORT_FD) {
            close(ends[1]);
        }
        execv(program, argv);
        _exit(127);
    }
    close(ends[1]);
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    return (struct child){pid, ends[0]};
}

/* In the child: tells the status and sentence of this thread's last call. */
static inline void report_send(mlxd_status status, const mlxd_group *group) {
    struct report report;
    memset(&report, 0, sizeof report);
    report.at = seconds();
    report.status = status;
    snprintf(report.message, sizeof report.message, "%s",
             status == MLXD_OK ? "" : mlxd_last_error());
    report.rank = group != NULL ? mlxd_group_rank(group) : -1;
    report.size = group != NULL ? mlxd_group_size(group) : -1;
    snprintf(report.backend, sizeof report.backend, "%s",
             group != NULL ? mlxd_group_backend(group) : "");
    REQUIRE(write(REPORT_FD, &report, sizeof report) == (ssize_t)sizeof report);
}

/* The child's next report; false when it ended without one. */
static inline bool report_read(struct child *child, struct report *report) {
    size_t have = 0;
    while (have < sizeof *report) {
        ssize_t got = read(child->from, (char *)report + have, sizeof *report - have);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return false;
        }
        have += (size_t)got;
    }
    return true;
}

/* Waits for the end of a child: its exit status, or 128 and its signal. */
static inline int child_end(struct child *child) {
    int status = 0;
    while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR) {
    }
    close(child->from);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static inline bool port_is_free(int family, int port) {
    struct sockaddr_in six_or_four = {.sin_family = AF_INET,
                                      .sin_port = htons((uint16_t)port),
                                      .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6,
                               .sin6_port = htons((uint16_t)port),
                               .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    const struct sockaddr *address =
        family == AF_INET ? (const struct sockaddr *)&six_or_four : (const struct sockaddr *)&six;
    socklen_t length = family == AF_INET ? sizeof six_or_four : sizeof six;
    int fd = socket(family, SOCK_STREAM, 0);
    bool is_free = fd >= 0 && bind(fd, address, length) == 0;
    if (fd >= 0) {
        close(fd);
    }
    return is_free;
}

/* The first of `many` free ports of the loopback interface, below the range that the system itself
 * hands out; each call and each process looks in another place. */
static inline int free_ports(int many) {
    static int calls;
    for (int attempt = 0; attempt < 200; attempt++) {
        int port = 20000 + (int)(((unsigned)getpid() * 61u + (unsigned)calls++ * 7u) % 12000u);
        int good = 0;
        while (good < many && port_is_free(AF_INET, port + good)) {
            good++;
        }
        if (good == many) {
            return port;
        }
    }
    REQUIRE(!"a free port");
    return -1;
}

/* True when the text has this number as a word of its own, not as a part of an address or port. */
static inline bool names_number(const char *text, long number) {
    for (const char *at = text; *at != '\0'; at++) {
        if (*at < '0' || *at > '9') {
            continue;
        }
        char before = at == text ? ' ' : at[-1];
        char *end;
        long found = strtol(at, &end, 10);
        bool address =
            before == ':' || before == '.' || (*end == '.' && end[1] >= '0' && end[1] <= '9');
        bool word = before == '_' || (before >= 'a' && before <= 'z');
        if (found == number && !address && !word) {
            return true;
        }
        at = end - 1;
    }
    return false;
}

#endif
