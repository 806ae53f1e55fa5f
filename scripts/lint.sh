#!/bin/sh
# What is checked without being run: format, lints, documentation, and that every set of features compiles.
set -eu
cd "$(dirname "$0")/.."
. scripts/stages.sh
trap report EXIT

export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"

documentation() {
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --lib
}

# The library with no feature, with each alone, and the programs without a GPU; scripts/test.sh compiles it for wasm32.
features() {
    for set in "" cuda wgpu cli; do
        echo "features: ${set:-none}"
        cargo clippy --lib --bins --no-default-features --features "$set" -- -D warnings || return
    done
}

stage format cargo fmt --check
stage clippy cargo clippy --all-targets -- -D warnings
stage documentation documentation
stage features features
