#!/bin/sh
# The stand-ins against the vendor's own headers: constants, layouts, and the signature of every function.
#   nccl_headers.sh COMPILER FOLDER SOURCE...
# FOLDER is where scripts/test installs the wheels nvidia-nccl-cu13 and nvidia-cuda-runtime.
set -eu
compiler=$1 folder=$2
shift 2
nccl=$folder/nvidia/nccl/include cuda=$folder/nvidia/cu13/include
if [ ! -e "$nccl/nccl.h" ] || [ ! -e "$cuda/cuda.h" ]; then
    echo "skipped: no nccl.h and cuda.h below $folder: scripts/test gets them from PyPI"
    exit 77
fi
# All that nccl.h takes from CUDA's runtime.
stub=$(mktemp -d)
trap 'rm -r "$stub"' EXIT
cat >"$stub/cuda_runtime.h" <<'END'
#include <cuda.h>
typedef CUstream cudaStream_t;
typedef CUevent cudaEvent_t;
#define CUDART_VERSION CUDA_VERSION
END
: >"$stub/cuda_fp16.h"
: >"$stub/cuda_bf16.h"
count=0
for source; do
    "$compiler" -std=c11 -Wall -Wextra -pedantic -Werror -fsyntax-only -DFAKE_REAL_HEADERS \
        "-I$stub" -isystem "$nccl" -isystem "$cuda" "$source"
    count=$((count + 1))
done
# A wrong signature must not pass.
cat >"$stub/wrong.c" <<'END'
#include "fake_gpu.h"
ncclResult_t ncclCommCount(const ncclComm_t comm, long *count) { return comm == 0 && *count == 0; }
END
if "$compiler" -std=c11 -fsyntax-only -DFAKE_REAL_HEADERS "-I$(dirname "$1")" "-I$stub" \
    -isystem "$nccl" -isystem "$cuda" "$stub/wrong.c" 2>/dev/null; then
    echo "a wrong signature passed"
    exit 1
fi
echo "$count files agree with $(grep -m1 NCCL_VERSION_CODE "$nccl/nccl.h")"
