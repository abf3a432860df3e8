/* What the stand-ins for CUDA's driver and for NCCL share: the types, constants and signatures of
 * the binary interface that they imitate, and how they talk to each other.
 *
 * With FAKE_REAL_HEADERS the vendor's cuda.h and nccl.h are included instead, and the compiler
 * compares: every constant, the layout of structs, and the signature of each function that is
 * defined. */
#ifndef FAKE_GPU_H
#define FAKE_GPU_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef FAKE_REAL_HEADERS
#include <cuda.h>
#include <nccl.h>
#define CONSTANT(name, value) _Static_assert((long long)(name) == (value), #name)
#else
typedef int CUresult;
typedef int CUdevice;
typedef int CUpointer_attribute;
typedef int CUstreamCaptureMode;
typedef int CUstreamCaptureStatus;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;
typedef void (*CUhostFn)(void *user_data);
typedef CUstream cudaStream_t;

typedef int ncclResult_t;
typedef int ncclDataType_t;
typedef int ncclRedOp_t;
typedef struct ncclComm *ncclComm_t;
typedef struct {
    char internal[128];
} ncclUniqueId;
/* As NCCL 2.18 has it; later versions add members behind these. */
typedef struct {
    size_t size;
    unsigned magic;
    unsigned version;
    int blocking;
    int cgaClusterSize;
    int minCTAs;
    int maxCTAs;
    const char *netName;
    int splitShare;
} ncclConfig_t;
#define NCCL_API_MAGIC 0xcafebeef
#define NCCL_CONFIG_UNDEF_INT INT_MIN
#define CU_STREAM_LEGACY ((CUstream)1)
#define CU_STREAM_PER_THREAD ((CUstream)2)
#define CONSTANT(name, value) enum { name = (value) }
#endif

CONSTANT(CUDA_SUCCESS, 0);
CONSTANT(CUDA_ERROR_INVALID_VALUE, 1);
CONSTANT(CUDA_ERROR_OUT_OF_MEMORY, 2);
CONSTANT(CUDA_ERROR_NOT_INITIALIZED, 3);
CONSTANT(CUDA_ERROR_DEINITIALIZED, 4);
CONSTANT(CUDA_ERROR_NO_DEVICE, 100);
CONSTANT(CUDA_ERROR_INVALID_DEVICE, 101);
CONSTANT(CUDA_ERROR_INVALID_CONTEXT, 201);
CONSTANT(CUDA_ERROR_INVALID_HANDLE, 400);
CONSTANT(CUDA_ERROR_NOT_READY, 600);
CONSTANT(CUDA_ERROR_CONTEXT_IS_DESTROYED, 709);
CONSTANT(CUDA_ERROR_NOT_PERMITTED, 800);
CONSTANT(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 900);
CONSTANT(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 901);
CONSTANT(CUDA_ERROR_STREAM_CAPTURE_IMPLICIT, 906);
CONSTANT(CUDA_ERROR_CAPTURED_EVENT, 907);
CONSTANT(CUDA_ERROR_UNKNOWN, 999);
CONSTANT(CU_STREAM_NON_BLOCKING, 1);
CONSTANT(CU_STREAM_CAPTURE_STATUS_NONE, 0);
CONSTANT(CU_STREAM_CAPTURE_STATUS_ACTIVE, 1);
CONSTANT(CU_STREAM_CAPTURE_STATUS_INVALIDATED, 2);
CONSTANT(CU_STREAM_CAPTURE_MODE_GLOBAL, 0);
CONSTANT(CU_EVENT_DISABLE_TIMING, 2);
CONSTANT(CU_MEM_ATTACH_GLOBAL, 1);
CONSTANT(CU_MEMORYTYPE_HOST, 1);
CONSTANT(CU_MEMORYTYPE_DEVICE, 2);
CONSTANT(CU_POINTER_ATTRIBUTE_CONTEXT, 1);
CONSTANT(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, 2);
CONSTANT(CU_POINTER_ATTRIBUTE_DEVICE_POINTER, 3);
CONSTANT(CU_POINTER_ATTRIBUTE_HOST_POINTER, 4);
CONSTANT(CU_POINTER_ATTRIBUTE_IS_MANAGED, 8);
CONSTANT(CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL, 9);
CONSTANT(CU_POINTER_ATTRIBUTE_RANGE_START_ADDR, 11);
CONSTANT(CU_POINTER_ATTRIBUTE_RANGE_SIZE, 12);
CONSTANT(CU_POINTER_ATTRIBUTE_MAPPED, 13);

CONSTANT(ncclSuccess, 0);
CONSTANT(ncclUnhandledCudaError, 1);
CONSTANT(ncclSystemError, 2);
CONSTANT(ncclInternalError, 3);
CONSTANT(ncclInvalidArgument, 4);
CONSTANT(ncclInvalidUsage, 5);
CONSTANT(ncclRemoteError, 6);
CONSTANT(ncclInProgress, 7);
CONSTANT(ncclSum, 0);
CONSTANT(ncclMax, 2);
CONSTANT(ncclMin, 3);
CONSTANT(ncclInt8, 0);
CONSTANT(ncclUint8, 1);
CONSTANT(ncclInt32, 2);
CONSTANT(ncclUint32, 3);
CONSTANT(ncclInt64, 4);
CONSTANT(ncclUint64, 5);
CONSTANT(ncclFloat16, 6);
CONSTANT(ncclFloat32, 7);
CONSTANT(ncclFloat64, 8);
CONSTANT(ncclBfloat16, 9);

_Static_assert(NCCL_API_MAGIC == 0xcafebeef, "magic");
_Static_assert(NCCL_CONFIG_UNDEF_INT == INT_MIN, "undefined");
_Static_assert(sizeof(ncclUniqueId) == 128, "ncclUniqueId");
_Static_assert(offsetof(ncclConfig_t, magic) == 8, "magic");
_Static_assert(offsetof(ncclConfig_t, version) == 12, "version");
_Static_assert(offsetof(ncclConfig_t, blocking) == 16, "blocking");
_Static_assert(offsetof(ncclConfig_t, cgaClusterSize) == 20, "cgaClusterSize");
_Static_assert(offsetof(ncclConfig_t, minCTAs) == 24, "minCTAs");
_Static_assert(offsetof(ncclConfig_t, maxCTAs) == 28, "maxCTAs");
_Static_assert(offsetof(ncclConfig_t, netName) == 32, "netName");
_Static_assert(offsetof(ncclConfig_t, splitShare) == 40, "splitShare");

#define EXPORT __attribute__((visibility("default")))

/* A program that uses the interface in a way that the real libraries leave undefined (a host
 * pointer in a kernel, a handle after its end) must not pass a test: says so and aborts. */
_Noreturn void fake_misuse(const char *library, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* What NCCL's stand-in, and tests, ask of the driver's stand-in beyond CUDA's own functions. */

/* Runs work on a stream of this device, in order, as a kernel would; returns at once. */
EXPORT CUresult fake_cuda_enqueue(int device, CUstream stream, void (*work)(void *),
                                  void *argument);
/* Where a kernel finds these bytes; NULL unless all are in one allocation that it may touch. */
EXPORT void *fake_cuda_memory(const void *pointer, size_t bytes);
/* The device of this thread's context, or 0 if it has none, as CUDA's runtime does. */
EXPORT int fake_cuda_device(void);
/* Which of the machine's devices this one is, whatever CUDA_VISIBLE_DEVICES shows of them. */
EXPORT int fake_cuda_place(int device);
/* How many there are that were not given back: "streams", "events", "memory", "contexts";
 * how many threads are in cuInit ("starts"); how many "calls" of the driver's functions there were.
 */
EXPORT long fake_cuda_live(const char *what);
/* Lets cuInit go on, where FAKE_NCCL_CUDA_INIT has it wait. */
EXPORT void fake_cuda_go(void);
/* NCCL's: communicators that were neither destroyed nor aborted. */
EXPORT long fake_nccl_live(void);
/* How many of its threads are in what FAKE_NCCL_HANG asks for. */
EXPORT long fake_nccl_stuck(void);

#endif
