#!/usr/bin/env bash
# test_gpu.sh SCRIPT BUILD: scripts/test-gpu packs what was built, and what it packed runs from another folder,
# over the stand-ins; without a driver it says that there is none; a test that fails is told.
set -euo pipefail
script=$1 build=$2
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT
MLXD_TEST_PACK_BUILT=$build "$script" --pack "$folder/pack"

# expect STATUS WORD COMMAND...
expect() {
    local want=$1 word=$2 status=0
    shift 2
    "$@" >"$folder/log" 2>&1 </dev/null || status=$?
    if [ "$status" -ne "$want" ] || ! grep -q "$word" "$folder/log"; then
        cat "$folder/log"
        echo "FAILED: $* ended with $status, not $want, or did not say \"$word\""
        exit 1
    fi
}

cd /
expect 0 "7 tests passed, 0 failed, 0 skipped" "$folder/pack/test-gpu" --stand-in --only _1
expect 0 "STAND-IN: no GPU" "$folder/pack/test-gpu" --stand-in --only arguments_2
FAKE_NCCL_RETURN="allreduce:2:1" expect 1 "1 failed" "$folder/pack/test-gpu" --stand-in \
    --only arguments_2
FAKE_NCCL_DEVICES=0 expect 77 "no CUDA device" "$folder/pack/test-gpu" --stand-in
if ! ldconfig -p | grep -q 'libcuda\.so\.1'; then
    expect 77 "no CUDA driver" "$folder/pack/test-gpu"
fi
echo "packed, carried and run"
