/* NCCL's functions for tests and measurements that call it beside libmlxd, opened at run time. */
#ifndef NCCL_DIRECT_H
#define NCCL_DIRECT_H

#include "device.h"

#include <limits.h>

typedef struct {
    char internal[128];
} nccl_id;

/* ncclConfig_t of NCCL 2.18. */
struct nccl_config {
    size_t size;
    unsigned magic, version;
    int blocking, cga_cluster_size, min_ctas, max_ctas;
    const char *net_name;
    int split_share;
};

#define NCCL_IN_PROGRESS 7
#define NCCL_SUM 0
#define NCCL_UINT8 1
#define NCCL_INT32 2
#define NCCL_FLOAT32 7

static struct {
    void *library;
    int (*version)(int *);
    int (*unique_id)(nccl_id *);
    int (*init)(void **, int, nccl_id, int, struct nccl_config *);
    int (*async_error)(void *, int *);
    int (*finalize)(void *);
    int (*destroy)(void *);
    int (*abort)(void *);
    int (*split)(void *, int, int, void **, struct nccl_config *);
    int (*all_reduce)(const void *, void *, size_t, int, int, void *, void *);
    int (*send)(const void *, size_t, int, int, void *, void *);
    int (*recv)(void *, size_t, int, int, void *, void *);
    int (*group_start)(void);
    int (*group_end)(void);
} nccl;

/* NULL once it is open, otherwise why not. */
static inline const char *nccl_open(void) {
    static char why[300];
    const char *name = getenv("MLXD_NCCL_LIBNAME");
    nccl.library = dlopen(name != NULL && name[0] != '\0' ? name : "libnccl.so.2", RTLD_NOW);
    if (nccl.library == NULL) {
        snprintf(why, sizeof why, "no NCCL: %s", dlerror());
        return why;
    }
    const struct {
        const char *name;
        void *function;
    } wanted[] = {
        {"ncclGetVersion", &nccl.version},
        {"ncclGetUniqueId", &nccl.unique_id},
        {"ncclCommInitRankConfig", &nccl.init},
        {"ncclCommGetAsyncError", &nccl.async_error},
        {"ncclCommFinalize", &nccl.finalize},
        {"ncclCommDestroy", &nccl.destroy},
        {"ncclCommAbort", &nccl.abort},
        {"ncclCommSplit", &nccl.split},
        {"ncclAllReduce", &nccl.all_reduce},
        {"ncclSend", &nccl.send},
        {"ncclRecv", &nccl.recv},
        {"ncclGroupStart", &nccl.group_start},
        {"ncclGroupEnd", &nccl.group_end},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        void *function = dlsym(nccl.library, wanted[i].name);
        if (function == NULL) {
            snprintf(why, sizeof why, "this NCCL has no %s", wanted[i].name);
            return why;
        }
        memcpy(wanted[i].function, &function, sizeof function);
    }
    return NULL;
}

/* Ends the program where there is no NCCL. */
static inline void nccl_find(void) {
    const char *why = nccl_open();
    if (why != NULL) {
        printf("skipped: %s\n", why);
        exit(SKIPPED);
    }
}

static inline struct nccl_config nccl_configuration(bool blocking) {
    return (struct nccl_config){sizeof(struct nccl_config),
                                0xcafebeef,
                                21800,
                                blocking,
                                INT_MIN,
                                INT_MIN,
                                INT_MIN,
                                NULL,
                                INT_MIN};
}

/* What a call on a nonblocking communicator comes to, which is told to `comm`. */
static inline int nccl_settled(int result, void *comm) {
    double until = seconds() + 60;
    while (result == NCCL_IN_PROGRESS && seconds() < until) {
        sleep_ms(1);
        int asked = nccl.async_error(comm, &result);
        if (asked != 0) {
            return asked;
        }
    }
    return result;
}

#endif
