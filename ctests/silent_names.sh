#!/bin/sh
# Runs a program where name servers are asked and never answer: silent_names.sh PROGRAM [ARGUMENT ...]
# Skipped (77) where namespaces for that cannot be made.
set -eu
if ! [ -e /etc/resolv.conf ] || ! unshare -mn ip link add away type veth 2>/dev/null; then
    echo "skipped: no network namespaces with ip, or no /etc/resolv.conf, here"
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
printf 'nameserver 10.9.9.9\noptions timeout:30 attempts:2\n' >"$folder/resolv.conf"
echo 'hosts: files dns' >"$folder/nsswitch.conf"
# shellcheck disable=SC2016  # the inner shell expands it
unshare -mn sh -c '
    set -eu
    mount --bind "$0/resolv.conf" /etc/resolv.conf
    # No daemon is asked instead.
    [ ! -e /etc/nsswitch.conf ] || mount --bind "$0/nsswitch.conf" /etc/nsswitch.conf
    [ ! -d /run/nscd ] || mount -t tmpfs none /run/nscd
    ip link set lo up
    ip link add away type veth peer name nobody
    ip link set nobody up
    ip link set away up
    ip address add 10.9.9.1/24 dev away
    ip neighbour add 10.9.9.9 lladdr 02:00:00:00:00:09 dev away
    "$@"' "$folder" "$@"
