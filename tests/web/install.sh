#!/usr/bin/env bash
# Install the test browser's driver (approve.mjs and npm puppeteer-core) outside of the repository; print where.
# Idempotent. Needs Node 20, npm and Chromium; root on Debian gets them by apt.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
. "$here/../needs.sh"
need_node || exit 1
need chromium chromium || exit 1
cache=$(test_cache)
dir=$cache/web-$(cat "$here"/package-lock.json "$here"/*.mjs <(node --version) | sha256sum | cut -c1-12)
exec 9> "$cache/web.lock"
flock 9
if [ ! -e "$dir/.done" ]; then
    rm -rf -- "$dir"
    mkdir -p -- "$dir"
    cp "$here"/*.mjs "$here"/package.json "$here"/package-lock.json "$here"/.npmrc "$dir"
    cd "$dir"
    if ! tries 3 timeout 300 npm ci --no-fund --no-audit > "$cache/web.log" 2>&1; then
        tail -5 "$cache/web.log" >&2
        printf 'npm cannot install puppeteer-core: is the network there?\n' >&2
        exit 1
    fi
    touch .done
fi
printf '%s\n' "$dir"
