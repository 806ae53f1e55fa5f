#!/bin/sh
# Everything that needs an NVIDIA GPU, on a machine that has one and this folder's repository, and need not have cargo:
#   sh tests/gpu/run.sh FOLDER [conformance|soak|memcheck|racecheck|bench]...     (all unless told otherwise)
# FOLDER holds release binaries built elsewhere, `fasq-bench` and `conformance`:
#   cargo build --release --bin fasq-bench && cp target/release/fasq-bench FOLDER
#   cargo test --release --test conformance --no-run && cp target/release/deps/conformance-HASH FOLDER/conformance
# memcheck and racecheck are those of compute-sanitizer, of the CUDA toolkit. They slow kernels down a hundredfold, so
# they get the cases of every kind of kernel that are small.
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
    step compute-sanitizer --tool "$1" --error-exitcode 1 "$folder/conformance" --test-threads=1 \
        cuda::attention cuda::causal_conv cuda::delta_rule cuda::embed cuda::gated_norm cuda::gather_rows \
        cuda::rms_norm cuda::rope_cache cuda::rotate cuda::swiglu cuda::top_k cuda_decode::decode cuda_quantize
}

bench() {
    step "$folder/fasq-bench" kernels --device cuda
    for way in matvec tiles tables decoded; do
        step "$folder/fasq-bench" kernels --device cuda --specs 2-256@universal --rows 16 --way $way
    done
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
    all) conformance; soak; sanitizer memcheck; sanitizer racecheck; bench ;;
    conformance | soak | bench) "$part" ;;
    memcheck | racecheck) sanitizer "$part" ;;
    *) echo "run.sh: no part $part: conformance, soak, memcheck, racecheck or bench"; exit 2 ;;
    esac
done
exit $failed
