#!/bin/sh
# The built page (build.sh) in headless Chromium: its text must be the native CPU backend's.
# Usage: web-demo/test.sh [FOLDER], where screenshots go if a folder is given.
set -eu
[ -z "${1:-}" ] || { mkdir -p "$1"; screenshots=$(cd "$1" && pwd); }
cd "$(dirname "$0")"
[ -d node_modules/playwright-core ] || npm install --silent --no-audit --no-fund --no-package-lock
export PROMPT="The history of the city begins" SCREENSHOTS="${screenshots:-}"
EXPECTED=$(cargo run --release --quiet --manifest-path ../Cargo.toml --bin fasq-run -- \
    --backend cpu --greedy --quiet -n 16 -p "$PROMPT")
export EXPECTED
exec node test/browser.mjs
