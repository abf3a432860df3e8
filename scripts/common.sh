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

configure() {
    cmake -S . -B "$build_dir" -DMLXD_TARGET_DIR="$(realpath -m "$target_dir")"
}
