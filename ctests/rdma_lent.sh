#!/usr/bin/env bash
# Runs a program over RDMA as rdma_run.sh does, with the same arguments, and requires that every rank has sent
# from where the program's memory is: a program that checks its data does not see whether it was copied.
set -euo pipefail
folder=$(dirname "${BASH_SOURCE[0]}")
ranks=$3
output=$(mktemp)
trap 'rm -f "$output"' EXIT
status=0
MLXD_LOG=debug "$folder/rdma_run.sh" "$@" >"$output" 2>&1 || status=$?
grep -v ' debug: ' "$output" || true
lenders=$(grep -E 'bytes were copied, [1-9][0-9]{5,} lent' "$output" | cut -d ' ' -f 1 | sort -u | wc -l)
if [ "$status" -eq 0 ] && [ "$lenders" -ne "$ranks" ]; then
    echo "$lenders of $ranks ranks have sent from where memory is"
    grep ' lent' "$output" || true
    exit 1
fi
exit "$status"
