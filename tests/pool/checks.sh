# Checks that are counted, not fatal. Sourced after common.sh, never executed.
# shellcheck shell=bash
set +e
fail=0 ok=0

log()   { printf '%s %s\n' "$(date -u +%T.%3N)" "$*"; }
act()   { printf '\n'; log "== $*"; }
check() { # WHAT COMMAND...
    local what=$1; shift
    if "$@" > /dev/null 2>&1; then log "ok     $what"; ok=$((ok + 1)); else log "FAILED $what"; fail=$((fail + 1)); fi
}
not()  { ! "$@"; }
same() { [ "$1" = "$2" ]; }
says() { grep -qF -- "$2" "$RUN/$1"; }    # TRANSCRIPT TEXT
wait_for() { # SECONDS COMMAND...
    local end=$((SECONDS + $1)); shift
    until "$@" > /dev/null 2>&1; do [ $SECONDS -lt $end ] || return 1; sleep 0.1; done
}
counted() { # the last line, and whether all is good
    printf '\n%d checks good, %d failed\n' $ok $fail
    [ $fail = 0 ]
}
