/* The stand-in for libcuda.so.1, continued: copies and fills. */
#include "fake_cuda.h"

#include "fake_settings.h"

struct copy {
    void *to;
    const void *from;
    size_t bytes;
    void *staged; /* what `from` held at the call, if that was ordinary memory */
};

static void run_copy(void *argument) {
    struct copy *copy = argument;
    memmove(copy->to, copy->staged != NULL ? copy->staged : copy->from, copy->bytes);
    free(copy->staged);
    free(copy);
}

/* As the driver does: from ordinary host memory the bytes are taken at once, to it they have come
 * when the call returns; all else goes on behind the call. */
static CUresult copy_start(const void *to, const void *from, size_t bytes, CUstream stream,
                           bool wait) {
    void *target, *source;
    bool target_fits, source_fits;
    enum kind target_kind = fake_kind(to, bytes, &target, &target_fits);
    enum kind source_kind = fake_kind(from, bytes, &source, &source_fits);
    if (!target_fits || !source_fits) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (bytes == 0) {
        return CUDA_SUCCESS;
    }
    struct copy *copy = calloc(1, sizeof *copy);
    void *staged = source_kind == PAGEABLE ? malloc(bytes) : NULL;
    if (copy == NULL || (source_kind == PAGEABLE && staged == NULL)) {
        free(copy);
        free(staged);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (staged != NULL) {
        memcpy(staged, source, bytes);
    }
    *copy = (struct copy){target, source, bytes, staged};
    struct place place = fake_enqueue(stream, run_copy, copy);
    if (wait || target_kind == PAGEABLE) {
        fake_wait(place);
    }
    return CUDA_SUCCESS;
}

static bool is_cuda(const void *pointer) {
    void *host;
    bool fits;
    return fake_kind(pointer, 0, &host, &fits) != PAGEABLE;
}

static bool is_device_only(const void *pointer) {
    void *host;
    bool fits;
    return fake_kind(pointer, 0, &host, &fits) == DEVICE;
}

#define AT(pointer) ((void *)(uintptr_t)(pointer))

EXPORT CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTER("cuMemcpyAsync", true);
    STREAM(stream, handle);
    return copy_start(AT(to), AT(from), bytes, stream, false);
}

static CUresult copy_in(CUdeviceptr to, const void *from, size_t bytes, CUstream stream,
                        bool wait) {
    if (bytes != 0 && (!is_cuda(AT(to)) || is_device_only(from))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return copy_start(AT(to), from, bytes, stream, wait);
}

static CUresult copy_out(void *to, CUdeviceptr from, size_t bytes, CUstream stream, bool wait) {
    if (bytes != 0 && (!is_cuda(AT(from)) || is_device_only(to))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return copy_start(to, AT(from), bytes, stream, wait);
}

EXPORT CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes,
                                     CUstream handle) {
    ENTER("cuMemcpyHtoDAsync", true);
    STREAM(stream, handle);
    return copy_in(to, from, bytes, stream, false);
}

EXPORT CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream handle) {
    ENTER("cuMemcpyDtoHAsync", true);
    STREAM(stream, handle);
    return copy_out(to, from, bytes, stream, false);
}

EXPORT CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes,
                                     CUstream handle) {
    ENTER("cuMemcpyDtoDAsync", true);
    STREAM(stream, handle);
    if (bytes != 0 && (!is_cuda(AT(to)) || !is_cuda(AT(from)))) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return copy_start(AT(to), AT(from), bytes, stream, false);
}

EXPORT CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) {
    UNSAFE("cuMemcpyHtoD", true);
    return copy_in(to, from, bytes, fake_current()->legacy, true);
}

EXPORT CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) {
    UNSAFE("cuMemcpyDtoH", true);
    return copy_out(to, from, bytes, fake_current()->legacy, true);
}

struct fill {
    void *to;
    size_t bytes;
    int value;
};

static void run_fill(void *argument) {
    struct fill *fill = argument;
    memset(fill->to, fill->value, fill->bytes);
    free(fill);
}

static CUresult fill_start(CUdeviceptr to, unsigned char value, size_t bytes, CUstream stream,
                           struct place *place) {
    void *target = fake_cuda_memory(AT(to), bytes);
    struct fill *fill = malloc(sizeof *fill);
    if (bytes != 0 && target == NULL) {
        free(fill);
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (fill == NULL) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *fill = (struct fill){target, bytes != 0 ? bytes : 0, value};
    *place = fake_enqueue(stream, run_fill, fill);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes,
                                CUstream handle) {
    ENTER("cuMemsetD8Async", true);
    STREAM(stream, handle);
    struct place place;
    return fill_start(to, value, bytes, stream, &place);
}

EXPORT CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t bytes) {
    UNSAFE("cuMemsetD8", true);
    struct place place = {NULL, 0};
    CUresult error = fill_start(to, value, bytes, fake_current()->legacy, &place);
    fake_wait(place);
    return error;
}
