#!/bin/sh
# Builds the page into web-demo/dist. Usage: web-demo/build.sh [--test] [MODEL.fasq]; the demo model if none is given.
# --test builds faster what is larger and slower, for web-demo/test.sh.
# Uses rustup's wasm32 target if it is there, and Debian's compiler if not. Exits with 75 where neither can be had.
set -eu
profile=release
if [ "${1:-}" = --test ]; then
    profile=quick
    shift
fi
model=${1:-$(dirname "$0")/../models/wiki-32m.fasq}
[ -f "$model" ] || { echo "$model: no such model" >&2; exit 2; }
model=$(cd "$(dirname "$model")" && pwd)/$(basename "$model")
cd "$(dirname "$0")"

target=wasm32-unknown-unknown
if [ -d "$(rustc --print sysroot)/lib/rustlib/$target" ]; then
    cargo build --profile $profile --target "$target"
    out=target/$target
elif sh rustc-web.sh target/rustc-web; then
    # Cargo builds the standard library from the sources beside this compiler.
    RUSTC=$PWD/target/rustc-web/rustc RUSTC_BOOTSTRAP=1 cargo build --profile $profile --target "$target" \
        -Zbuild-std=std,panic_abort --target-dir target/own-std
    out=target/own-std/$target
else
    echo "no Rust for $target: run 'rustup target add $target'" >&2
    exit 75
fi

rm -rf dist
mkdir dist
cargo run --quiet -p bindgen -- "$out/$profile/fasq_web.wasm" dist
cp page/* dist/
cp "$model" dist/wiki-32m.fasq
echo "web-demo/dist: $(gzip -9 -c dist/fasq_web_bg.wasm | wc -c) bytes of wasm, gzipped; web-demo/serve.sh serves it"
