/* Test support: checks that say where they failed, a clock, a time limit for the whole program.
 * Include this file first; it asks the system headers for POSIX. */
#ifndef CHECK_H
#define CHECK_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif

#include <signal.h>
#ifdef __cplusplus
#include <atomic>
using std::atomic_fetch_add;
using std::atomic_load;
using std::atomic_long;
#else
#include <stdatomic.h>
#endif
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "mlxd.h"

/* This process's rank, for messages only; -1 before a start. */
static int check_rank = -1;
static atomic_long check_count;
static atomic_long check_failures;

/* A program that has failed this often says nothing new. */
#define CHECK_MAX_FAILURES 40

static inline void check_at(bool ok, const char *file, int line, const char *what) {
    atomic_fetch_add(&check_count, 1);
    if (ok) {
        return;
    }
    fprintf(stderr, "%s:%d: rank %d: CHECK failed: %s\n", file, line, check_rank, what);
    if (atomic_fetch_add(&check_failures, 1) + 1 >= CHECK_MAX_FAILURES) {
        fprintf(stderr, "%s: rank %d: too many failures, giving up\n", file, check_rank);
        _exit(1);
    }
}

static inline void check_status_at(mlxd_status got, mlxd_status want, const char *file, int line,
                                   const char *what) {
    if (got != want) {
        /* Copied first: naming the statuses may be this thread's next call. */
        char cause[1024];
        snprintf(cause, sizeof cause, "%s", mlxd_last_error());
        fprintf(stderr, "%s:%d: rank %d: got %s, want %s: \"%s\"\n", file, line, check_rank,
                mlxd_status_name(got), mlxd_status_name(want), cause);
    }
    check_at(got == want, file, line, what);
}

/* Counts a failure and goes on. */
#define CHECK(ok) check_at((ok), __FILE__, __LINE__, #ok)

/* Ends the program: for what the rest cannot do without. */
#define REQUIRE(ok)                                    \
    do {                                               \
        bool require_ok = (ok);                        \
        check_at(require_ok, __FILE__, __LINE__, #ok); \
        if (!require_ok) {                             \
            _exit(1);                                  \
        }                                              \
    } while (0)

/* A call that must return this status. */
#define CHECK_STATUS(call, want) check_status_at((call), (want), __FILE__, __LINE__, #call)
#define CHECK_OK(call) CHECK_STATUS(call, MLXD_OK)

/* A call that must succeed; ranks are out of step after it failed, so the program ends. */
#define REQUIRE_OK(call)                                                     \
    do {                                                                     \
        mlxd_status require_status = (call);                                 \
        check_status_at(require_status, MLXD_OK, __FILE__, __LINE__, #call); \
        if (require_status != MLXD_OK) {                                     \
            _exit(1);                                                        \
        }                                                                    \
    } while (0)

/* The last error of this thread must contain this text. */
static inline void check_error_names_at(const char *text, const char *file, int line) {
    const char *message = mlxd_last_error();
    bool ok = message != NULL && strstr(message, text) != NULL;
    if (!ok) {
        fprintf(stderr, "%s:%d: rank %d: \"%s\" does not name \"%s\"\n", file, line, check_rank,
                message ? message : "(null)", text);
    }
    check_at(ok, file, line, "the message names what was wrong");
}
#define CHECK_ERROR_NAMES(text) check_error_names_at((text), __FILE__, __LINE__)

/* A call whose arguments are wrong: its status, and a sentence that says so. */
#define CHECK_INVALID(call)                                       \
    do {                                                          \
        CHECK_STATUS(call, MLXD_ERROR_INVALID_ARGUMENT);          \
        CHECK(mlxd_last_status() == MLXD_ERROR_INVALID_ARGUMENT); \
        CHECK(mlxd_last_error()[0] != '\0');                      \
    } while (0)

/* Seconds of a clock that all processes of this machine share. */
static inline double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static inline void sleep_ms(long ms) {
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0) {
    }
}

static inline void check_alarm(int signal_number) {
    (void)signal_number;
    static const char text[] = "test program ran into its time limit\n";
    ssize_t written = write(STDERR_FILENO, text, sizeof text - 1);
    (void)written;
    _exit(124);
}

/* First statement of every main: whatever happens, the program ends after this many seconds. */
static inline void check_start(unsigned limit_s) {
    signal(SIGALRM, check_alarm);
    alarm(limit_s);
}

/* Last statement of every main: its exit status. */
static inline int check_finish(const char *program) {
    long failures = atomic_load(&check_failures);
    if (check_rank <= 0 || failures != 0) {
        printf("%s: %ld checks, %ld failed\n", program, atomic_load(&check_count), failures);
    }
    return failures == 0 ? 0 : 1;
}

/* The backend of programs that are not about a certain one: MLXD_TEST_BACKEND, or ring. */
static inline const char *test_backend(void) {
    const char *name = getenv("MLXD_TEST_BACKEND");
    return name != NULL && name[0] != '\0' ? name : "ring";
}

/* Where MPI's rules differ from those of the backends that are all ours. */
static inline bool over_mpi(void) {
    return strcmp(test_backend(), "mpi") == 0;
}

#include "gather.h"

/* The folder by which the ranks find each other, if that is how; NULL: as the environment says. */
static inline const char *gather_folder(void) {
    return getenv("MLXD_TEST_GATHER");
}

/* A world whose ranks find each other by files. */
static inline mlxd_group *world_by_gather(void) {
    const char *rank = getenv("MLX_RANK");
    const char *size = getenv("MLXD_TEST_RANKS");
    mlxd_options *options = mlxd_options_new();
    REQUIRE(options != NULL && rank != NULL && size != NULL);
    static int rounds; /* of earlier starts */
    struct file_gather gather = {gather_folder(), atoi(rank), atoi(size), rounds};
    REQUIRE_OK(mlxd_options_set_all_gather(options, gather_by_files, &gather));
    mlxd_group *world = mlxd_init_with_options(true, test_backend(), options);
    rounds = gather.round;
    mlxd_options_free(options);
    return world;
}

/* The world that the environment describes; NULL where there is none. */
static inline mlxd_group *world_try(void) {
    return gather_folder() != NULL ? world_by_gather() : mlxd_init(true, test_backend());
}

/* The same; ends the program where there is none. */
static inline mlxd_group *world_start(void) {
    mlxd_group *world = world_try();
    if (world == NULL) {
        fprintf(stderr, "mlxd_init: %s: %s\n", mlxd_status_name(mlxd_last_status()),
                mlxd_last_error());
    }
    REQUIRE(world != NULL);
    check_rank = mlxd_group_rank(world);
    return world;
}

#endif
