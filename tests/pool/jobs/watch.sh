#!/bin/sh
# The job: says which token it sees when, by digest, never the token. Argument: seconds to run.
echo "creds dir: $_CONDOR_CREDS"
end=$(( $(date +%s) + ${1:-10} ))
old=
while [ "$(date +%s)" -lt "$end" ]; do
    for f in "$_CONDOR_CREDS"/*.use; do
        sum=$(sed -n 's/.*"access_token":"\([^"]*\)".*/\1/p' "$f" | tr -d '\n' | sha256sum | cut -c1-12)
        new="${f##*/} sha256 $sum"
        case "$old" in *"$new"*) ;; *) echo "$(date -u +%FT%T.%3N) job $new"; old="$old|$new";; esac
    done
    sleep 0.2
done
