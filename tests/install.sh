#!/usr/bin/env bash
# Install a folder of tests/ that has a package-lock.json outside of the repository; print where:  install.sh FOLDER
#   oidc   the test issuer: issuer.mjs, client.mjs and npm oidc-provider
#   web    a person's browser: approve.mjs, device.mjs and npm puppeteer-core, which drives Debian's Chromium
# Idempotent, and fast when nothing changed. Needs Node 20 and npm; root on Debian gets them by apt.
set -euo pipefail
folder=${1:-} from="$(cd "$(dirname "$0")" && pwd)/${1:-}"
. "$(dirname "$0")/needs.sh"
case $folder in
    oidc) need openssl openssl || exit 1;;
    web)  need chromium chromium || exit 1;;
    *)    printf 'usage: install.sh oidc|web\n' >&2; exit 2;;
esac
need_node || exit 1
cache=$(test_cache)
dir=$cache/$folder-$(cat "$from"/package-lock.json "$from"/*.mjs <(node --version) | sha256sum | cut -c1-12)
exec 9> "$cache/$folder.lock"
flock 9
if [ ! -e "$dir/.done" ]; then
    rm -rf -- "$dir"
    mkdir -p -- "$dir"
    cp "$from"/*.mjs "$from"/package.json "$from"/package-lock.json "$from"/.npmrc "$dir"
    cd "$dir"
    if ! tries 3 timeout 300 npm ci --no-fund --no-audit > "$cache/$folder.log" 2>&1; then
        tail -5 "$cache/$folder.log" >&2
        printf 'npm cannot install what %s/package-lock.json names: is the network there?\n' "$folder" >&2
        exit 1
    fi
    touch .done
fi
printf '%s\n' "$dir"
