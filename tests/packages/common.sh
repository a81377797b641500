# What the tests of the packages share. Sourced, never executed.
# shellcheck shell=bash
. "$(dirname "${BASH_SOURCE[0]}")/../pool/common.sh"
. "$(dirname "${BASH_SOURCE[0]}")/../needs.sh"

fail=0
log()    { printf '%s %s\n' "$(date +%H:%M:%S)" "$*"; }
check()  { local what=$1; shift; if "$@" > /dev/null 2>&1; then log "ok    $what"; else log "FAILED $what"; fail=$((fail + 1)); fi; }
not()    { ! "$@"; }
finish() { if [ "$fail" = 0 ]; then log 'all passed'; else log "$fail failed"; exit 1; fi; }

# no_ghosts ROOT: HTCondor there takes its configuration, and none of the knobs by which it runs us names a missing file.
no_ghosts() {
    local knob value
    chroot "$1" condor_config_val -summary > /dev/null 2>&1 || return 1
    for knob in CREDMON_OAUTH SEC_CREDENTIAL_STORER; do
        value=$(chroot "$1" condor_config_val "$knob" 2> /dev/null) || continue
        [ -e "$1$value" ] || { echo "$knob = $value"; return 1; }
    done
}
# inert ROOT: HTCondor there runs nothing of ours (the knobs have defaults of its own).
inert() {
    chroot "$1" condor_config_val -summary > /dev/null 2>&1 &&
        ! chroot "$1" condor_config_val CREDMON_OAUTH SEC_CREDENTIAL_STORER 2> /dev/null | grep evercred
}
# enable ROOT: the admin's own file, from docs/installation.md, without another word.
enable() {
    local block
    while IFS= read -r -d '' block; do
        case $block in *config.d/50-evercred.conf*) chroot "$1" sh -ec "$block"; return;; esac
    done < <(blocks sh)
    return 1
}

# blocks KIND: the blocks of docs/installation.md of that kind, each ended by a NUL.
blocks() {
    awk -v kind="$1" '$0 == "```" && on { on = 0; printf "%c", 0; next } on; $0 == "```" kind { on = 1 }' \
        "$LAB_SCRIPTS/../../docs/installation.md"
}

# fresh_root LAB: a copy of the pool's chroot, without a trace of an earlier run, as LAB/root.
fresh_root() {
    local lab=$1 suite=${LAB_SUITE:-forky} pool
    pool=$(test_cache)/pool-$suite
    "$LAB_SCRIPTS/bootstrap.sh" "$pool" "$suite" || return 1
    "$LAB_SCRIPTS/stop.sh" "$lab" 2> /dev/null
    if grep -q " $lab/root/" /proc/self/mounts; then die "something is mounted below $lab/root"; fi
    rm -rf --one-file-system -- "$lab"
    mkdir -p "$lab"
    cp -a --reflink=auto "$pool/root" "$lab/root"
    cp "$pool/.recipe" "$lab/.recipe"; touch "$lab/.lab"
    # The pool's chroot leaves out documentation; packages are judged whole.
    rm -f "$lab/root/etc/dpkg/dpkg.cfg.d/lab"
    # What the pool's own tests leave.
    rm -rf "$lab"/root/usr/local/{bin,sbin}/* "$lab/root/etc/evercred" \
        "$lab/root/var/lib/condor/oauth_credentials" "$lab"/root/etc/condor/config.d/*.conf \
        "$lab"/root/home/*/job.* "$lab"/root/var/{lock/condor,lib/condor/spool,spool/condor}
    # With the addresses in it, whose names begin with a dot.
    find "$lab/root/var/log/condor" -mindepth 1 -delete
    local account
    for account in evercred evercred-replicate; do
        ! chroot "$lab/root" id "$account" > /dev/null 2>&1 || chroot "$lab/root" userdel "$account"
    done
}

# in_root LAB PACKAGE...: Debian's packages, into that root. The machine's network, not the lab's.
in_root() {
    local lab=$1; shift
    tries 3 chroot "$lab/root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C sh -c 'apt-get -o Acquire::Check-Valid-Until=false -q update &&
        apt-get -q -y --no-install-recommends install "$@"' sh "$@" > "$lab/apt.log" 2>&1 && return 0
    tail -5 "$lab/apt.log" >&2
    return 1
}

# setuid_free ROOT PATH...: none of these files has a set-user-id, set-group-id or file-capability bit.
setuid_free() {
    local root=$1; shift
    [ -z "$(cd "$root" && find "$@" -maxdepth 0 -type f \( -perm -4000 -o -perm -2000 \) -print)" ] || return 1
    have getcap || need getcap libcap2-bin || return 1
    [ -z "$(cd "$root" && getcap "$@" 2> /dev/null)" ]
}
