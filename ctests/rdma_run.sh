#!/usr/bin/env bash
# Runs a program on ranks of this machine that RDMA devices connect:
#   rdma_run.sh LAUNCHER TOPOLOGY RANKS DEVICES WIRES PROGRAM [ARGUMENT ...]
# TOPOLOGY: mesh or ring. DEVICES: on how many devices the ranks are. WIRES: between two of them.
# Says why and exits with 77 where there are no such devices (rdma_devices.sh).
# MLXD_TEST_NO_TCP=1: each rank is in a network of its own, where nothing but RDMA leads to the others, and
# they start by an all-gather of the program's.
set -euo pipefail
# shellcheck source=ctests/rdma_devices.sh
. "$(dirname "${BASH_SOURCE[0]}")/rdma_devices.sh"

launcher=$1 topology=$2 ranks=$3 wires=$5
find_devices "$4"
shift 5

# Adds to `matrix` the devices of one rank's wires to another: each rank begins with another one. (No
# subshells here: where the machine is emulated each costs as much as a small message.)
add_entry() {
    local wire apart=$((($1 - $2 + ranks) % ranks))
    if [ $apart -eq 0 ] || { [ "$topology" = ring ] && [ $apart -ne 1 ] && [ $apart -ne $((ranks - 1)) ]; }; then
        matrix+=null
        return
    fi
    for ((wire = 0; wire < wires; wire++)); do
        [ $wire -eq 0 ] && matrix+='[' || matrix+=,
        matrix+="\"${devices[($1 + wire) % ${#devices[@]}]}\""
    done
    matrix+=']'
}

# The devices file.
make_matrix() {
    local rank peer
    matrix='['
    for ((rank = 0; rank < ranks; rank++)); do
        [ $rank -eq 0 ] || matrix+=','
        for ((peer = 0; peer < ranks; peer++)); do
            [ $peer -eq 0 ] && matrix+='[' || matrix+=,
            add_entry $rank $peer
        done
        matrix+=']'
    done
    matrix+=']'
}

# A port of the loopback interface at which nobody listens, below those that the system hands out.
port=$((20000 + $$ * 61 % 12000))
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do
    port=$((port + 1))
done

file=$(mktemp)
trap 'rm -f "$file"' EXIT
make_matrix
echo "$matrix" >"$file"
# The launcher takes away what describes another world than its own, unless it is told so.
world=(--env MLXD_TEST_BACKEND=jaccl --env "MLX_IBV_DEVICES=$file"
    --env "MLX_JACCL_COORDINATOR=127.0.0.1:$port")
[ "$topology" != ring ] || world+=(--env MLX_JACCL_RING=1)
if [ -n "${MLXD_TEST_NO_TCP:-}" ]; then
    unshare -n true 2>/dev/null || without_devices "unshare -n is not allowed here"
    folder=$(mktemp -d)
    trap 'rm -rf "$file" "$folder"' EXIT
    world+=(--env "MLXD_TEST_GATHER=$folder" --env "MLXD_TEST_RANKS=$ranks")
    set -- unshare -n "$@"
fi
"$launcher" -n "$ranks" "${world[@]}" -- "$@" </dev/null
