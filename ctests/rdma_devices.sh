# shellcheck shell=bash
# The RDMA devices that tests use, for scripts that read this file.

# Leaves the test: skipped, or failed where devices are required (MLXD_TEST_RDMA=required).
without_devices() {
    if [ "${MLXD_TEST_RDMA:-}" = required ]; then
        echo "MLXD_TEST_RDMA=required, but $*" >&2
        exit 1
    fi
    echo "skipped: $*"
    exit 77
}

# Sets `devices` to the first $1 of those that reach each other: MLXD_TEST_RDMA_DEVICES names them, or it
# is the first one here with an active port, which reaches itself.
find_devices() {
    local wanted=$1 port
    read -r -a devices <<<"${MLXD_TEST_RDMA_DEVICES:-}"
    if [ ${#devices[@]} -eq 0 ]; then
        for port in /sys/class/infiniband/*/ports/*; do
            if grep -qs ACTIVE "$port/state"; then
                port=${port%/ports/*}
                devices=("${port##*/}")
                break
            fi
        done
    fi
    if [ ${#devices[@]} -eq 0 ]; then
        without_devices "there is no RDMA device with an active port; scripts/rxe-vm makes some"
    fi
    if [ ${#devices[@]} -lt "$wanted" ]; then
        without_devices "this takes $wanted RDMA devices that reach each other: name them in" \
            "MLXD_TEST_RDMA_DEVICES"
    fi
    devices=("${devices[@]:0:wanted}")
}
