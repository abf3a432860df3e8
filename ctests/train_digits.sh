#!/usr/bin/env bash
# train_digits.sh LAUNCH PROGRAM DATA: the example reaches its accuracy on 4 ranks, and its loss follows
# the curve of one rank to 1e-4.
set -euo pipefail
launch=$1 program=$2 data=$3
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

"$launch" -n 1 -- "$program" --curve "$folder/one" "$data"
"$launch" -n 4 -- "$program" --curve "$folder/four" "$data"
paste "$folder/one" "$folder/four" | awk '
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
