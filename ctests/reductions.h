/* The three reductions that give every rank the whole result. */
#ifndef REDUCTIONS_H
#define REDUCTIONS_H

#include "values.h"

typedef mlxd_status (*collective)(mlxd_group *, const void *, void *, size_t, mlxd_dtype,
                                  mlxd_stream *);

static const struct {
    const char *name;
    collective call;
    enum reduction reduction;
} reductions[] = {
    {"all_sum", mlxd_all_sum, REDUCE_SUM},
    {"all_max", mlxd_all_max, REDUCE_MAX},
    {"all_min", mlxd_all_min, REDUCE_MIN},
};

#endif
