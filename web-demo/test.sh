#!/bin/sh
# The built page (build.sh) in headless Chromium: its text must be the native CPU backend's.
# Usage: web-demo/test.sh [FOLDER [TEST]]: screenshots go to the folder, if one is given; only tests with TEST in their names
# run, two at a time. Exits with 75 where there is no browser.
set -eu
[ -z "${1:-}" ] || { mkdir -p "$1"; screenshots=$(cd "$1" && pwd); }
cd "$(dirname "$0")"
command -v chromium >/dev/null || { echo "no Chromium here" >&2; exit 75; }
[ -d node_modules/playwright-core ] || npm install --silent --no-audit --no-fund --no-package-lock ||
    { echo "playwright-core cannot be installed" >&2; exit 75; }
export PROMPT="The history of the city begins" SCREENSHOTS="${screenshots:-}"

# The programs as the other tests have built them.
cargo test --quiet --manifest-path ../Cargo.toml --no-run --test integration
programs=${CARGO_TARGET_DIR:-../target}/debug

text() { "$programs/fasq-run" --backend cpu --greedy --quiet -n 16 -p "$PROMPT" "$@"; }

# Chromium's WebGPU is the CPU here: it takes minutes for the kernels of the demo model and seconds for those of a small one.
export SMALL="$PWD/target/small.fasq"
"$programs/fasq-quantize" ../tests/fixtures/qwen35-tiny --pq 2-64@matrix -o "$SMALL" >/dev/null
EXPECTED=$(text)
EXPECTED_SMALL=$(text "$SMALL")
export EXPECTED EXPECTED_SMALL
exec node test/browser.mjs "${2:-}"
