/* The header needs nothing before it and may be included twice; every constant is an integer
 * constant expression and every function has a prototype. */
#include "mlxd.h"
#include "mlxd.h"

int header_values[] = {MLXD_OK, MLXD_ERROR_INTERNAL, MLXD_BOOL, MLXD_COMPLEX64, MLXD_VERSION_MAJOR};

int header_switch(mlxd_status status, mlxd_dtype dtype);

int header_switch(mlxd_status status, mlxd_dtype dtype) {
    switch (status) {
    case MLXD_OK:
        return dtype == MLXD_FLOAT32;
    case MLXD_ERROR_PEER_LOST:
        return (int)mlxd_dtype_size(dtype);
    default:
        return mlxd_is_available(0) ? 1 : 0;
    }
}
