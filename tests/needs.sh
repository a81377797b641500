# What tests need beyond cargo, and how it gets here. Sourced, never executed.
# shellcheck shell=bash

# Where built things live between runs, outside of the repository: chroots, installed packages.
test_cache() {
    local dir=${EVERCRED_TEST_CACHE:-}
    if [ -z "$dir" ]; then
        if [ "$(id -u)" = 0 ]; then dir=/var/cache/evercred-tests
        else dir=${XDG_CACHE_HOME:-$HOME/.cache}/evercred-tests; fi
    fi
    mkdir -p -- "$dir" && printf '%s' "$dir"
}

have() { command -v "$1" > /dev/null; }

# Only there may packages be installed: root, on Debian or a child of it.
may_install() { [ "$(id -u)" = 0 ] && have apt-get; }

# tries N COMMAND...: again after 5, 10, ... s, for what fails when a network does.
tries() {
    local n=$1 at=1; shift
    until "$@"; do
        [ "$at" -lt "$n" ] || return 1
        printf '%s: failed, try %d of %d in %d s\n' "$1" $((at + 1)) "$n" $((at * 5)) >&2
        sleep $((at * 5)); at=$((at + 1))
    done
}

# One at a time: apt's own locks do not wait.
apt_alone() { local lock; lock=$(test_cache)/apt.lock; flock "$lock" "$@"; }

apt_install() {
    # shellcheck disable=SC2016 # the inner shell expands it
    apt_alone env DEBIAN_FRONTEND=noninteractive sh -c \
        'apt-get -q update && apt-get -q -y --no-install-recommends install "$@"' sh "$@"
}

# need COMMAND PACKAGE...: the command is there, or is installed by name. Says why not; 1 then.
need() {
    local command=$1 log; shift
    have "$command" && return 0
    if ! may_install; then
        printf '%s is missing, and only root on Debian may install it (apt-get install %s)\n' "$command" "$*" >&2
        return 1
    fi
    printf 'installing %s\n' "$*" >&2
    log=$(test_cache)/apt-$command.log
    if ! tries 3 apt_install "$@" > "$log" 2>&1; then
        tail -5 "$log" >&2
        printf '%s could not be installed (apt-get install %s): is the network there?\n' "$command" "$*" >&2
        return 1
    fi
    have "$command"
}

# Node 20 or later, and npm.
need_node() {
    local major
    need node nodejs && need npm npm || return 1
    major=$(node -p 'process.versions.node.split(".")[0]')
    [ "$major" -ge 20 ] && return 0
    printf 'Node %s is too old for oidc-provider: it needs 20 or later\n' "$major" >&2
    return 1
}
