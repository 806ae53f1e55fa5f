#!/bin/sh
# Everything that is tested, on a bare Debian with Rust and no GPU: installs what it needs, if it may, then checks
# format, lints, documentation and tests.
set -eu
cd "$(dirname "$0")/.."

export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"

lavapipe=/usr/share/vulkan/icd.d/lvp_icd.x86_64.json
swiftshader=/usr/lib/chromium/vk_swiftshader_icd.json

# System packages, where this is Debian and we are root: a software Vulkan driver for the wgpu tests, and Chromium for
# the page's, which brings another. From PyPI NVRTC, by which the CUDA kernels are compiled, not run.
install() {
    need=""
    [ -e "$lavapipe" ] || need="$need mesa-vulkan-drivers libvulkan1"
    [ -e "$swiftshader" ] || need="$need chromium"
    if [ -n "$need" ] && command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get update -qq
        # shellcheck disable=SC2086
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $need >/dev/null
    fi
    python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore nvidia-cuda-nvrtc-cu12 ||
        echo "NVRTC cannot be installed: the CUDA kernels will not be compiled" >&2
}

# What follows needs none of it. No failure leaves it behind.
install &
installing=$!
trap wait EXIT

cargo fmt --check
cargo clippy --release --all-targets -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --lib
wait "$installing"
cargo test --release

# The kernels again, on the other driver, which is slow: whole models and many rows not by the kernels that GPUs run.
if [ -e "$swiftshader" ]; then
    VK_DRIVER_FILES="$swiftshader" cargo test --release --test conformance wgpu -- \
        --skip wgpu_full::forward --skip wgpu_full::pq_matmul --skip wgpu_rows --skip wgpu::steps_near
else
    echo "NOT TESTED: kernels on SwiftShader; there is no Chromium" >&2
fi

# The page, in a browser. 75: something that it takes cannot be had here.
status=0
{ sh web-demo/build.sh && sh web-demo/test.sh; } || status=$?
if [ "$status" = 75 ]; then
    echo "NOT TESTED: the page in a browser" >&2
elif [ "$status" != 0 ]; then
    exit "$status"
fi
