// The C header as C++: nothing before it, included twice, linkage of C.
#include "mlxd.h"
#include "mlxd.h"

#if __cplusplus >= 201703L && defined(__has_include)
#if __has_include("mlxd.hpp")
#include "mlxd.hpp"
#include "mlxd.hpp"
#endif
#endif

static_assert(MLXD_OK == 0, "success is zero");
static_assert(sizeof(mlxd_status) == 4 && sizeof(mlxd_dtype) == 4, "numbers cross as int32_t");

extern "C" mlxd_status header_call(mlxd_group *group, mlxd_stream *stream) {
    return mlxd_barrier(group, stream);
}
