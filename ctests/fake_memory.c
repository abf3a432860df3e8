/* The stand-in for libcuda.so.1, continued: memory of devices, pinned and managed memory. */
#include "fake_cuda.h"

#include <sys/mman.h>
#include <unistd.h>

#include "fake_settings.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* blocks */

/* Addresses of a device are reserved and never accessible; its bytes are `shift` bytes further on.
 */
struct block {
    unsigned char *base;
    size_t bytes;
    size_t shift;
    size_t mapped;
    enum kind kind;
    CUcontext context;
    struct block *next;
};

static struct block *blocks;

/* With the lock held. */
static struct block *block_of(const void *pointer) {
    const unsigned char *at = pointer;
    for (struct block *block = blocks; block != NULL; block = block->next) {
        if (at >= block->base && at < block->base + block->bytes) {
            return block;
        }
    }
    return NULL;
}

enum kind fake_kind(const void *pointer, size_t bytes, void **host, bool *fits) {
    enum kind kind = PAGEABLE;
    *host = (void *)(uintptr_t)pointer;
    *fits = true;
    pthread_mutex_lock(&lock);
    struct block *block = block_of(pointer);
    if (block != NULL) {
        size_t offset = (size_t)((const unsigned char *)pointer - block->base);
        kind = block->kind;
        *host = block->base + offset + block->shift;
        *fits = bytes <= block->bytes - offset;
    }
    pthread_mutex_unlock(&lock);
    return kind;
}

EXPORT void *fake_cuda_memory(const void *pointer, size_t bytes) {
    void *host;
    bool fits;
    return fake_kind(pointer, bytes, &host, &fits) != PAGEABLE && fits ? host : NULL;
}

static CUresult block_new(size_t bytes, enum kind kind, void **pointer) {
    if (bytes == 0) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t mapped = (bytes + page - 1) / page * page;
    size_t shift = kind == DEVICE ? mapped : 0;
    struct block *block = calloc(1, sizeof *block);
    void *base = mmap(NULL, mapped + shift, kind == DEVICE ? PROT_NONE : PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == NULL || base == MAP_FAILED) {
        free(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    if (kind == DEVICE && mprotect((char *)base + shift, mapped, PROT_READ | PROT_WRITE) != 0) {
        munmap(base, mapped + shift);
        free(block);
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    *block = (struct block){base, bytes, shift, mapped + shift, kind, fake_current(), NULL};
    pthread_mutex_lock(&lock);
    block->next = blocks;
    blocks = block;
    pthread_mutex_unlock(&lock);
    *pointer = base;
    return CUDA_SUCCESS;
}

/* Only the address that was given out may be given back. */
static CUresult block_free(void *pointer, bool pinned) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of(pointer);
    bool right = block != NULL && block->base == pointer && (block->kind == PINNED) == pinned;
    pthread_mutex_unlock(&lock);
    if (!right) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    fake_device_idle(block->context);
    pthread_mutex_lock(&lock);
    struct block **link = &blocks;
    while (*link != NULL && *link != block) {
        link = &(*link)->next;
    }
    if (*link == NULL) {
        fake_misuse("CUDA", "memory at %p is freed by two threads", pointer);
    }
    *link = block->next;
    pthread_mutex_unlock(&lock);
    munmap(block->base, block->mapped);
    free(block);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    UNSAFE("cuMemAlloc", true);
    void *memory = NULL;
    CUresult error = block_new(bytes, DEVICE, &memory);
    *pointer = (CUdeviceptr)(uintptr_t)memory;
    return error;
}

EXPORT CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned flags) {
    ENTER("cuMemAllocManaged", true);
    if (flags != CU_MEM_ATTACH_GLOBAL && flags != 2) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    void *memory = NULL;
    CUresult error = block_new(bytes, MANAGED, &memory);
    *pointer = (CUdeviceptr)(uintptr_t)memory;
    return error;
}

EXPORT CUresult cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    UNSAFE("cuMemHostAlloc", true);
    return (flags & ~7u) != 0 ? CUDA_ERROR_INVALID_VALUE : block_new(bytes, PINNED, pointer);
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr pointer) {
    UNSAFE("cuMemFree", true);
    return pointer == 0 ? CUDA_SUCCESS : block_free((void *)(uintptr_t)pointer, false);
}

EXPORT CUresult cuMemFreeHost(void *pointer) {
    UNSAFE("cuMemFreeHost", true);
    return pointer == NULL ? CUDA_SUCCESS : block_free(pointer, true);
}

/* One attribute; of memory that is not CUDA's, the zero that cuPointerGetAttributes gives. */
static CUresult attribute_of(void *data, int attribute, CUdeviceptr pointer) {
    pthread_mutex_lock(&lock);
    struct block *block = block_of((void *)(uintptr_t)pointer);
    struct block at = block != NULL ? *block : (struct block){.kind = PAGEABLE};
    pthread_mutex_unlock(&lock);
    switch (attribute) {
    case CU_POINTER_ATTRIBUTE_CONTEXT:
        *(CUcontext *)data = at.context;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
        *(unsigned *)data = at.kind == PAGEABLE ? 0u
                            : at.kind == PINNED ? (unsigned)CU_MEMORYTYPE_HOST
                                                : (unsigned)CU_MEMORYTYPE_DEVICE;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
        *(CUdeviceptr *)data = block != NULL ? pointer : 0;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_HOST_POINTER:
        *(void **)data = at.kind == DEVICE || block == NULL ? NULL : (void *)(uintptr_t)pointer;
        return at.kind == DEVICE ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED:
    case CU_POINTER_ATTRIBUTE_MAPPED:
        *(unsigned *)data =
            attribute == CU_POINTER_ATTRIBUTE_IS_MANAGED ? at.kind == MANAGED : block != NULL;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL:
        *(int *)data = block != NULL ? at.context->device : -2;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_START_ADDR:
        *(CUdeviceptr *)data = (CUdeviceptr)(uintptr_t)at.base;
        return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_RANGE_SIZE:
        *(size_t *)data = at.bytes;
        return CUDA_SUCCESS;
    default:
        return CUDA_ERROR_INVALID_VALUE;
    }
}

EXPORT CUresult cuPointerGetAttribute(void *data, CUpointer_attribute attribute,
                                      CUdeviceptr pointer) {
    ENTER("cuPointerGetAttribute", false);
    void *host;
    bool fits;
    if (fake_kind((void *)(uintptr_t)pointer, 0, &host, &fits) == PAGEABLE) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return attribute_of(data, (int)attribute, pointer);
}

EXPORT CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute *attributes, void **data,
                                       CUdeviceptr pointer) {
    ENTER("cuPointerGetAttributes", false);
    for (unsigned i = 0; i < count; i++) {
        attribute_of(data[i], (int)attributes[i], pointer);
    }
    return CUDA_SUCCESS;
}

long fake_memory_live(void) {
    long live = 0;
    pthread_mutex_lock(&lock);
    for (struct block *block = blocks; block != NULL; block = block->next) {
        live++;
    }
    pthread_mutex_unlock(&lock);
    return live;
}
