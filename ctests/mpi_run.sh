#!/usr/bin/env bash
# Runs a program on MPI ranks, as one MPI's own launcher starts them:
#   mpi_run.sh MPI RANKS PROGRAM [ARGUMENT ...]
# MPI: openmpi, mpich (Debian's); openmpi5, mpich5, mpich5_abi, impi, impi_abi (below MLXD_TEST_MPI_DIR,
# each in an environment of its own). RANKS 0: no launcher. Says why and exits with 77 where that MPI is
# not there.
set -euo pipefail

mpi=$1
ranks=$2
shift 2
pypi=${MLXD_TEST_MPI_DIR:-}

skip() {
    echo "skipped: $*"
    exit 77
}

# home NAME: the environment that one of PyPI's MPIs is in.
home() {
    if [ -z "$pypi" ] || [ ! -x "$pypi/$1/bin/mpiexec" ]; then
        skip "no $1 from PyPI; scripts/test gets it"
    fi
    echo "$pypi/$1"
}

# Open MPI asks for these where root runs it, as in a container.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export MLXD_TEST_BACKEND=mpi

# More ranks than cores are welcome, and none is bound to a core that others use.
open_mpi=(--oversubscribe --bind-to none)
case $mpi in
openmpi)
    command -v mpirun.openmpi >/dev/null || skip "no mpirun.openmpi; Debian has it in openmpi-bin"
    launcher=(mpirun.openmpi "${open_mpi[@]}")
    ;;
mpich)
    command -v mpiexec.mpich >/dev/null || skip "no mpiexec.mpich; Debian has it in mpich"
    launcher=(mpiexec.mpich)
    ;;
openmpi5)
    home=$(home openmpi) || { echo "$home"; exit 77; }
    export PATH="$home/bin:$PATH" LD_LIBRARY_PATH="$home/lib"
    launcher=(mpirun "${open_mpi[@]}")
    ;;
mpich5 | mpich5_abi)
    home=$(home mpich) || { echo "$home"; exit 77; }
    library=libmpi.so.12
    [ "$mpi" = mpich5 ] || library=libmpi_abi.so.1
    export MLX_MPI_LIBNAME="$home/lib/$library"
    launcher=("$home/bin/mpiexec")
    ;;
impi | impi_abi)
    home=$(home impi) || { echo "$home"; exit 77; }
    library=libmpi.so.12
    [ "$mpi" = impi ] || library=libmpi_abi.so.1
    export LD_LIBRARY_PATH="$home/lib" MLX_MPI_LIBNAME="$home/lib/$library"
    launcher=("$home/bin/mpiexec")
    ;;
*)
    echo "unknown MPI $mpi" >&2
    exit 1
    ;;
esac
# A library by its file name alone is one that the system has, if it has that family.
library=${MLX_MPI_LIBNAME:-}
case $library in
/no/such/*) ;;
*/*) [ -e "$library" ] || skip "no $library" ;;
?*) ldconfig -p | grep -q "^\s*$library " || skip "no $library on this system" ;;
esac
if [ "$ranks" -eq 0 ]; then
    exec "$@"
fi
# The launcher reads no input, so that ctest's stays its own.
exec "${launcher[@]}" -n "$ranks" "$@" </dev/null
