#!/bin/sh
# The job: says which token it sees when, by digest, never the token. Argument: seconds to run.
echo "creds dir: $_CONDOR_CREDS"
end=$(( $(date +%s) + ${1:-10} ))
old=
while [ "$(date +%s)" -lt "$end" ]; do
    for f in "$_CONDOR_CREDS"/*.use; do
        new="${f##*/} sha256 $(sha256sum < "$f" | cut -c1-12)"
        case "$old" in *"$new"*) ;; *) echo "$(date +%H:%M:%S.%3N) job sees $new"; old="$old|$new";; esac
    done
    sleep 0.2
done
