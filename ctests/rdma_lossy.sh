#!/usr/bin/env bash
# Runs a test on the two devices that MLXD_TEST_RDMA_LOSSY names, between which packets are lost, about 1 in 100:
#   rdma_lossy.sh COMMAND [ARGUMENT ...]
# Says so and exits with 77 where it names none: few machines have such a cable.
# MLXD_TEST_LOST=counted: fails where the devices have noticed of no packet that it was lost meanwhile, which
# those count that send again what was.
set -euo pipefail

if [ -z "${MLXD_TEST_RDMA_LOSSY:-}" ]; then
    echo "skipped: MLXD_TEST_RDMA_LOSSY names no devices between which packets are lost; scripts/rxe-vm makes some"
    exit 77
fi
export MLXD_TEST_RDMA_DEVICES=$MLXD_TEST_RDMA_LOSSY

# Sets `lost` to the number of packets that came twice, or behind one that did not come.
count_lost() {
    local device counter number
    lost=0
    for device in $MLXD_TEST_RDMA_LOSSY; do
        for counter in "/sys/class/infiniband/$device"/ports/*/hw_counters/{out_of_seq*,duplicate_request}; do
            read -r number <"$counter"
            lost=$((lost + number))
        done
    done
}

if [ "${MLXD_TEST_LOST:-}" != counted ]; then
    exec "$@"
fi
count_lost
before=$lost
"$@"
count_lost
echo "$((lost - before)) packets came twice, or behind one that was lost"
[ "$lost" -gt "$before" ]
