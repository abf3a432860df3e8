#!/usr/bin/env bash
# Runs a program in a view of the system that lacks some libraries:
#   without.sh "LIBRARY ..." PROGRAM [ARGUMENT ...]
# A library is named as libmpi for libmpi.so and all its versions. Says why and exits with 77 where it
# may not change its view.
set -euo pipefail

unshare -m true 2>/dev/null || {
    echo "skipped: unshare -m is not allowed here"
    exit 77
}
# shellcheck disable=SC2016  # the inner shell expands it
exec env -u LD_LIBRARY_PATH -u MLX_MPI_LIBNAME unshare -m bash -c '
    for name in $1; do
        for library in $(ldconfig -p | sed -n "s/^\s*$name\.so.* => //p"); do
            mount --bind /dev/null "$(readlink -f "$library")"
        done
    done
    shift
    exec "$@"' bash "$@"
