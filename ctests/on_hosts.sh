#!/bin/sh
# on_hosts.sh HOSTS PROGRAM [ARGUMENT ...]: runs the program as if each rank were on the host that
# HOSTS has a letter for; "aab": ranks 0 and 1 share one, rank 2 has one of its own. For mlxd-launch.
set -eu
hosts=$1
shift
MLXD_HOST_ID=$(printf '%s' "$hosts" | cut -c $((MLX_RANK + 1)))
: "${MLXD_HOST_ID:?no host for this rank}"
export MLXD_HOST_ID
exec "$@"
