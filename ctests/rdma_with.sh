#!/usr/bin/env bash
# Runs a program that starts its own ranks over RDMA, on the devices that MLXD_TEST_RDMA_DEVICES names then:
#   rdma_with.sh DEVICES PROGRAM [ARGUMENT ...]
# Says why and exits with 77 where there are fewer (rdma_devices.sh).
set -euo pipefail
# shellcheck source=ctests/rdma_devices.sh
. "$(dirname "${BASH_SOURCE[0]}")/rdma_devices.sh"

find_devices "$1"
shift
export MLXD_TEST_BACKEND=jaccl MLXD_TEST_RDMA_DEVICES="${devices[*]}"
exec "$@"
