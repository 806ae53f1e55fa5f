#!/bin/sh
# Everything that needs an NVIDIA GPU, on a machine that has one and this folder's repository, and need not have cargo:
#   sh tests/gpu/run.sh FOLDER [conformance|soak|sanitizer|bench]...     (all of them unless told otherwise)
# FOLDER holds release binaries built elsewhere, `fasq-bench` and `conformance`:
#   cargo build --release --bin fasq-bench && cp target/release/fasq-bench FOLDER
#   cargo test --release --test conformance --no-run && cp target/release/deps/conformance-HASH FOLDER/conformance
# The sanitizer is compute-sanitizer of the CUDA toolkit; it slows kernels down a hundredfold, so it gets the cases of
# every kind of kernel that are small.
set -u
folder=$1
shift
CARGO_MANIFEST_DIR=$(cd "$(dirname "$0")/../.." && pwd)
export CARGO_MANIFEST_DIR
failed=0

step() {
    echo "== $*"
    "$@" || { failed=1; echo "== FAILED: $*"; }
}

conformance() {
    step "$folder/conformance" cuda --skip soak
}

soak() {
    step "$folder/conformance" cuda_soak
}

sanitizer() {
    for tool in memcheck racecheck; do
        step compute-sanitizer --tool "$tool" --error-exitcode 1 "$folder/conformance" --test-threads=1 \
            cuda::causal_conv cuda::delta_rule cuda::embed cuda::gated_norm cuda::gather_rows cuda::rms_norm \
            cuda::rope_cache cuda::rotate cuda::swiglu cuda::attention cuda::top_k cuda_decode::decode
    done
}

bench() {
    step "$folder/fasq-bench" kernels --device cuda
    step "$folder/fasq-bench" quantize --device cuda
    step "$folder/fasq-bench" --device cuda -p 128,512,2048 --compare
    step "$folder/fasq-bench" --device cuda -p 4096,16384
    step "$folder/fasq-bench" --device cuda --batch 4,16
    step "$folder/fasq-bench" --device cuda --pq 2-64
    step "$folder/fasq-bench" --device cuda --preset paper --compare
    step "$folder/fasq-bench" --device cuda --shape qwen3-8b
    step "$folder/fasq-bench" --device cuda --shape qwen3.5-9b
}

for part in "${@:-all}"; do
    case $part in
    all) conformance; soak; sanitizer; bench ;;
    conformance | soak | sanitizer | bench) "$part" ;;
    *) echo "run.sh: no part $part: conformance, soak, sanitizer or bench"; exit 2 ;;
    esac
done
exit $failed
