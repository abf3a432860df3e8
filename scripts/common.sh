# shellcheck shell=bash
# What scripts/run and scripts/test share: the repository's root, cargo, missing packages.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit

say() {
    printf '\n==> %s\n' "$*"
}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# As root, or by sudo without a question when nobody is there to answer it.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif ! command -v sudo >/dev/null; then
        return 1
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

# need COMMAND PACKAGE [COMMAND PACKAGE ...]: installs the Debian package of each command that is
# missing, or says what to install.
need() {
    local missing=()
    while [ $# -ge 2 ]; do
        command -v "$1" >/dev/null || missing+=("$2")
        shift 2
    done
    if [ ${#missing[@]} -eq 0 ]; then
        return 0
    fi
    say "installing ${missing[*]}"
    if ! command -v apt-get >/dev/null; then
        die "please install these first: ${missing[*]}"
    fi
    if ! as_root apt-get update -qq ||
        ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends "${missing[@]}"; then
        die "could not install them; as root: apt-get install ${missing[*]}"
    fi
}

# need_file PATTERN PACKAGE: the same for a package that is known by a file, named by a shell pattern.
need_file() {
    if compgen -G "$1" >/dev/null; then
        return 0
    fi
    say "installing $2"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" ||
        die "could not install it; as root: apt-get install $2"
}

# Puts cargo on PATH, as rustup does for new shells.
find_cargo() {
    if ! command -v cargo >/dev/null; then
        PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH"
        export PATH
    fi
    command -v cargo >/dev/null || die "cargo not found: install Rust from https://rustup.rs"
}

# need_component cargo-subcommand component: with rustup's minimal profile some are missing.
need_component() {
    if cargo "$1" --version >/dev/null 2>&1; then
        return 0
    fi
    command -v rustup >/dev/null || die "cargo $1 not found: install the Rust component $2"
    say "installing the Rust component $2"
    rustup component add "$2"
}

# Where cargo and CMake build.
target_dir=${CARGO_TARGET_DIR:-target}
# shellcheck disable=SC2034  # used by the scripts that read this file
build_dir=${MLXD_BUILD_DIR:-build}

core_count() {
    nproc 2>/dev/null || echo 2
}

# Everything that a build needs beside Rust.
prepare_build() {
    find_cargo
    need cc gcc c++ g++ make make cmake cmake
}

# try_need ...: need, for what tests can do without: false if it could not be had.
try_need() {
    (need "$@")
}

# Python's own environments, which pip installs into.
have_venv() {
    if ! python3 -c 'import ensurepip' 2>/dev/null; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends python3-venv >&2 || true
    fi
}

# The MPIs that tests run on: Debian's two families, and the newest of each family from PyPI, in
# environments of their own below the build folder. Prints a line for each that could not be had; its
# tests are skipped.
get_mpis() {
    try_need mpirun.openmpi openmpi-bin mpicc.openmpi libopenmpi-dev mpiexec.mpich mpich \
        mpicc.mpich libmpich-dev >&2 || echo "Debian's Open MPI and MPICH"
    local pair name package
    for pair in openmpi=openmpi mpich=mpich impi=impi-rt; do
        name=${pair%=*} package=${pair#*=}
        local home=$build_dir/mpi/$name
        if [ -x "$home/bin/mpiexec" ]; then
            continue
        fi
        say "getting $package from PyPI" >&2
        have_venv
        if ! python3 -m venv "$home" >&2 || ! "$home/bin/pip" -q install "$package" >&2; then
            rm -rf "$home"
            echo "$package from PyPI"
        fi
    done
}

# NVIDIA's NCCL and the headers of CUDA and NCCL from PyPI, 300 MB: what tests without a GPU compare with.
# Prints a line if they could not be had; the tests are skipped.
get_nccl() {
    local home=$build_dir/nccl
    if [ -e "$home/packages/nvidia/nccl/lib/libnccl.so.2" ]; then
        return 0
    fi
    say "getting nvidia-nccl-cu13 and nvidia-cuda-runtime from PyPI" >&2
    have_venv
    if ! python3 -m venv "$home/venv" >&2 ||
        ! "$home/venv/bin/pip" -q install --no-deps --target "$home/packages" nvidia-nccl-cu13 \
            nvidia-cuda-runtime >&2; then
        rm -rf "$home"
        echo "NCCL's own library and headers from PyPI"
    fi
}

# What the crate mpi-sys needs to read an mpi.h: libclang and its own headers.
have_libclang() {
    compgen -G '/usr/lib/llvm-*/lib/clang/*/include/stddef.h' >/dev/null ||
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends libclang-dev >&2
}

# What the crate ibverbs-sys needs beside that to compile rdma-core.
have_libnl() {
    if ! compgen -G '/usr/lib/*/libnl-3.so' >/dev/null || ! command -v pkg-config >/dev/null ||
        ! compgen -G '/usr/lib/*/libnl-route-3.so' >/dev/null; then
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends libnl-3-dev libnl-route-3-dev pkg-config >&2
    fi
}

configure() {
    cmake -S . -B "$build_dir" -DMLXD_TARGET_DIR="$(realpath -m "$target_dir")"
}
