#!/usr/bin/env bash
# Runs a program on ranks of this machine that RDMA devices connect:
#   rdma_run.sh LAUNCHER TOPOLOGY RANKS DEVICES WIRES PROGRAM [ARGUMENT ...]
# TOPOLOGY: mesh or ring. DEVICES: on how many devices the ranks are. WIRES: between two of them.
# Says why and exits with 77 where there are no such devices (rdma_devices.sh).
set -euo pipefail
# shellcheck source=ctests/rdma_devices.sh
. "$(dirname "${BASH_SOURCE[0]}")/rdma_devices.sh"

launcher=$1 topology=$2 ranks=$3 wires=$5
find_devices "$4"
shift 5

# Whether two ranks are connected.
are_connected() {
    local apart=$((($1 - $2 + ranks) % ranks))
    [ "$topology" = mesh ] || [ $apart -eq 1 ] || [ $apart -eq $((ranks - 1)) ]
}

# The devices of one rank's wires to another: each rank begins with another one.
entry() {
    local wire list=()
    if [ "$1" -eq "$2" ] || ! are_connected "$1" "$2"; then
        echo null
        return
    fi
    for ((wire = 0; wire < wires; wire++)); do
        list+=("\"${devices[($1 + wire) % ${#devices[@]}]}\"")
    done
    (IFS=, && echo "[${list[*]}]")
}

matrix() {
    local rank peer row rows=()
    for ((rank = 0; rank < ranks; rank++)); do
        row=()
        for ((peer = 0; peer < ranks; peer++)); do
            row+=("$(entry "$rank" "$peer")")
        done
        rows+=("$(IFS=, && echo "[${row[*]}]")")
    done
    (IFS=, && echo "[${rows[*]}]")
}

# A port of the loopback interface at which nobody listens, below those that the system hands out.
free_port() {
    local port=$((20000 + $$ * 61 % 12000))
    while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
        port=$((port + 1))
    done
    echo $port
}

file=$(mktemp)
trap 'rm -f "$file"' EXIT
matrix >"$file"
# The launcher takes away what describes another world, so that this is said after it.
world=(MLXD_TEST_BACKEND=jaccl "MLX_IBV_DEVICES=$file" "MLX_JACCL_COORDINATOR=127.0.0.1:$(free_port)")
[ "$topology" != ring ] || world+=(MLX_JACCL_RING=1)
"$launcher" -n "$ranks" -- env -u MLX_HOSTFILE "${world[@]}" "$@" </dev/null
