#!/usr/bin/env bash
# train_digits.sh LAUNCH PROGRAM DATA [MPI]: the example reaches its accuracy on 4 ranks, and its loss
# follows the curve of one rank to 1e-4. With an MPI as mpi_run.sh names it, the 4 ranks are 2 of its own.
set -euo pipefail
launch=$1 program=$2 data=$3 mpi=${4:-}
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

"$launch" -n 1 -- "$program" --curve "$folder/one" "$data"
if [ -n "$mpi" ]; then
    "$(dirname "$0")/mpi_run.sh" "$mpi" 2 "$program" --curve "$folder/several" "$data"
else
    "$launch" -n 4 -- "$program" --curve "$folder/several" "$data"
fi
paste "$folder/one" "$folder/several" | awk '
    # epoch loss accuracy epoch loss accuracy
    NF != 6 || $1 != $4 { print "line " NR " is not of one epoch: " $0; bad = 1; next }
    {
        apart = $2 - $5
        if (apart < 0) apart = -apart
        if (apart > most) most = apart
        epochs++
    }
    END {
        printf "%d epochs, losses at most %.2g apart\n", epochs, most
        exit bad || epochs == 0 || most > 1e-4
    }'
