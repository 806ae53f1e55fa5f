//! Every operation on every backend against an oracle in f64, and whole models against transformers.
//!
//! A backend joins with one `conformance!` line; a kernel with a module of its name, listed there.

mod attention;
mod attention_rows;
mod causal_conv;
#[cfg(feature = "cuda")]
mod cuda_few;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
mod decode;
mod delta_rule;
mod dense_matmul;
mod embed;
mod forward;
mod gated_norm;
mod gather_rows;
mod glu;
mod harness;
mod linear;
#[cfg(feature = "wgpu")]
mod pq_few;
mod pq_matmul;
mod pq_matvec;
#[cfg(feature = "cuda")]
mod pq_ways;
mod qk_norm;
#[cfg(feature = "cuda")]
mod quantize;
mod rms_norm;
mod rope_cache;
mod rotate;
#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[path = "../support/skip.rs"]
mod skip;
mod soak;
mod top_k;
#[cfg(feature = "wgpu")]
mod wgpu;

#[cfg(feature = "cuda")]
use fasq::backend::cuda::{MatmulAlgorithm, Precision};

conformance!(cpu, Some(fasq::backend::cpu::Cpu));
conformance!(cpu_rows, Some(fasq::backend::cpu::Cpu), [attention_rows], harness::EXACT);

#[cfg(feature = "wgpu")]
conformance!(wgpu_full, crate::wgpu::full());

#[cfg(feature = "wgpu")]
conformance!(
    wgpu_plain,
    crate::wgpu::plain(),
    [
        attention,
        causal_conv,
        delta_rule,
        dense_matmul,
        embed,
        forward,
        gated_norm,
        gather_rows,
        pq_few,
        rms_norm,
        rope_cache,
        rotate,
        glu
    ],
    harness::EXACT
);

// Instead of all specs, for an adapter that compiles slowly.
#[cfg(feature = "wgpu")]
conformance!(wgpu_few, crate::wgpu::full(), [pq_few], harness::EXACT);

#[cfg(feature = "wgpu")]
conformance!(wgpu_lut, crate::wgpu::lut(), [pq_few], harness::EXACT);

#[cfg(feature = "wgpu")]
conformance!(wgpu_rows, crate::wgpu::full(), [attention_rows], harness::EXACT);

#[cfg(feature = "wgpu")]
conformance!(wgpu_half, crate::wgpu::half(), [forward, pq_matmul], harness::HALF);

#[cfg(feature = "wgpu")]
conformance!(wgpu_decode, crate::wgpu::gpu(), [decode], harness::EXACT);

#[cfg(feature = "cuda")]
conformance!(cuda, cuda(Precision::Single));

// What users run: many rows go through the tensor cores in f16 or bf16.
#[cfg(feature = "cuda")]
conformance!(cuda_half, cuda(Precision::Half), [dense_matmul, forward, pq_matmul, pq_matvec], harness::HALF);

// Queries, keys and values rounded to f16, and softmax's weights.
#[cfg(feature = "cuda")]
conformance!(cuda_rows, cuda(Precision::Half), [attention_rows], harness::ATTENTION_F16);

// The delta rule by chunks, as good as sums of f32.
#[cfg(feature = "cuda")]
conformance!(cuda_chunks, cuda(Precision::Half), [delta_rule], harness::EXACT);

// Each way to multiply several rows, in f32 and with inputs rounded to f16.
#[cfg(feature = "cuda")]
conformance!(cuda_tiles, by(MatmulAlgorithm::Tiles, Precision::Single), [pq_ways], harness::EXACT);
#[cfg(feature = "cuda")]
conformance!(cuda_tables, by(MatmulAlgorithm::Tables, Precision::Single), [pq_ways], harness::EXACT);
#[cfg(feature = "cuda")]
conformance!(cuda_tiles_half, by(MatmulAlgorithm::Tiles, Precision::Half), [pq_ways], harness::INPUTS_F16);
#[cfg(feature = "cuda")]
conformance!(cuda_decoded, by(MatmulAlgorithm::Decoded, Precision::Half), [pq_ways], harness::INPUTS_F16);

// Whole decode steps, which are one launch where they can be.
#[cfg(feature = "cuda")]
conformance!(cuda_decode, cuda(Precision::Single), [decode], harness::EXACT);
#[cfg(feature = "cuda")]
conformance!(cuda_decode_half, cuda(Precision::Half), [decode], harness::HALF);

/// The first CUDA device with one way to multiply several rows.
#[cfg(feature = "cuda")]
fn by(algorithm: MatmulAlgorithm, precision: Precision) -> Option<fasq::backend::cuda::Cuda> {
    Some(cuda(precision)?.with_algorithm(algorithm))
}

conformance!(cpu_soak, Some(fasq::backend::cpu::Cpu), [soak], harness::EXACT);
#[cfg(feature = "cuda")]
conformance!(cuda_soak, cuda(fasq::backend::cuda::Precision::Single), [soak], harness::EXACT);

#[cfg(feature = "cuda")]
conformance!(cuda_quantize, cuda(Precision::Half), [quantize], harness::EXACT);

/// The first CUDA device; none where there is none.
#[cfg(feature = "cuda")]
fn cuda(precision: Precision) -> Option<fasq::backend::cuda::Cuda> {
    use fasq::backend::cuda::{Cuda, available};
    if !available() {
        skip::not_tested("CUDA", "no device");
        return None;
    }
    Some(Cuda::open(0).expect("a CUDA device").with_precision(precision))
}

/// The repository: where cargo says, or tests/gpu/run.sh, else where this was built.
fn root() -> std::path::PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or(env!("CARGO_MANIFEST_DIR").into(), Into::into)
}

/// A kernel's name is a file in each of these places.
#[test]
fn every_kernel_is_everywhere() {
    let root = root();
    for kernel in fasq::ops::kernels() {
        for place in
            ["src/backend/cpu/NAME.rs", "kernels/NAME.cu", "shaders/NAME.wgsl", "tests/conformance/NAME.rs"]
        {
            let file = place.replace("NAME", kernel);
            assert!(root.join(&file).exists(), "{file} is missing");
        }
    }
}
