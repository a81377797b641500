#!/usr/bin/env bash
# Install what drives a headless Chromium (npm puppeteer-core, Debian's chromium) outside of the repository; print where.
# Idempotent. approve.mjs is there, too.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
. "$here/../needs.sh"
need_node || exit 1
need chromium chromium || exit 1
cache=$(test_cache)
dir=$cache/browser-$(cat "$here/approve.mjs" <(node --version) | sha256sum | cut -c1-12)
exec 9> "$cache/browser.lock"
flock 9
if [ ! -e "$dir/.done" ]; then
    rm -rf -- "$dir"
    mkdir -p -- "$dir"
    cp "$here/approve.mjs" "$dir"
    cd "$dir"
    if ! tries 3 timeout 300 npm install --no-fund --no-audit --no-save --ignore-scripts puppeteer-core@24 > "$cache/browser.log" 2>&1; then
        tail -5 "$cache/browser.log" >&2
        printf 'npm cannot install puppeteer-core: is the network there?\n' >&2
        exit 1
    fi
    touch .done
fi
printf '%s\n' "$dir"
