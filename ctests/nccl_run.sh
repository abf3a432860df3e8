#!/usr/bin/env bash
# nccl_run.sh RANKS PROGRAM [ARGUMENT...]: starts a program once for each rank of a world over nccl, with MLX's
# variables, and a name of its own for each rank's host, so that NCCL lets several share a device. Ends with
# the first status that is not 0.
set -euo pipefail
ranks=$1
shift
port=$((20000 + $$ % 12000))
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    port=$((port + 1))
done
export MLX_WORLD_SIZE=$ranks NCCL_HOST_IP=127.0.0.1 NCCL_PORT=$port
pids=()
for ((rank = 0; rank < ranks; rank++)); do
    MLX_RANK=$rank NCCL_HOSTID=host-of-rank-$rank "$@" &
    pids+=($!)
done
result=0
for pid in "${pids[@]}"; do
    status=0
    wait "$pid" || status=$?
    [ "$result" -ne 0 ] || result=$status
done
exit "$result"
