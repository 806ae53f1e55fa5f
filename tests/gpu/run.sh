#!/bin/sh
# Everything that needs an NVIDIA GPU, on a machine that has one and this folder's repository, and need not have cargo:
#   sh tests/gpu/run.sh FOLDER [conformance|soak|memcheck|racecheck|synccheck|bench]...     (all unless told otherwise)
# FOLDER holds release binaries built elsewhere, `fasq-bench` and `conformance`:
#   cargo build --release --bin fasq-bench && cp target/release/fasq-bench FOLDER
#   cargo test --release --test conformance --no-run && cp target/release/deps/conformance-HASH FOLDER/conformance
# memcheck, racecheck and synccheck are those of compute-sanitizer, of the CUDA toolkit. They slow kernels down a
# hundredfold, so they get small cases of every kind of kernel (tests/conformance/cuda_few.rs where the usual ones are large);
# conformance before them leaves the kernels compiled.
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

# Of one of compute-sanitizer's tools, within ten minutes. racecheck does not follow a barrier at which one lane arrives for
# its warp, as in pq_rows.cu: with all lanes arriving it finds nothing there. synccheck has to be told of more barriers.
sanitizer() {
    case $1 in
    racecheck) option="--kernel-name-exclude kernel_name=pq_rows" ;;
    synccheck) option="--num-cuda-barriers 4096" ;;
    *) option= ;;
    esac
    # shellcheck disable=SC2086
    step timeout 600 compute-sanitizer --tool "$1" $option --error-exitcode 1 "$folder/conformance" --test-threads=1 \
        cuda::attention cuda::causal_conv cuda::delta_rule cuda::embed cuda::gated_norm cuda::gather_rows \
        cuda::qk_norm cuda::rms_norm cuda::rope_cache cuda::rotate cuda::glu cuda::top_k cuda_chunks cuda_few cuda_rows
}

bench() {
    step "$folder/fasq-bench" kernels --device cuda
    for algorithm in matvec tiles tables decoded; do
        step "$folder/fasq-bench" kernels --device cuda --specs 2-256@universal --rows 16 --algorithm $algorithm
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
    all) conformance; soak; sanitizer memcheck; sanitizer racecheck; sanitizer synccheck; bench ;;
    conformance | soak | bench) "$part" ;;
    memcheck | racecheck | synccheck) sanitizer "$part" ;;
    *) echo "run.sh: no part $part: conformance, soak, memcheck, racecheck, synccheck or bench"; exit 2 ;;
    esac
done
exit $failed
