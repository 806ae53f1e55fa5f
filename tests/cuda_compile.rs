//! Compiles every CUDA kernel in every specialisation for the RTX 3090 (sm_86) and the H200 (sm_90). Needs no GPU, only
//! libnvrtc: named by `FASQ_NVRTC`, installed, or from `pip install nvidia-cuda-nvrtc-cu12`.
#![cfg(feature = "cuda")]

use std::path::PathBuf;

use fasq::backend::cuda::{every, kernels, nvrtc};
use fasq::ops::Kernel;
use rayon::prelude::*;

/// Architectures, and the shared memory that a block may have on each.
const ARCHS: [(u32, u32); 2] = [(86, 99 << 10), (90, 227 << 10)];

/// libnvrtc of the Python package, if Python has it.
fn from_python() -> Option<PathBuf> {
    let find = "import nvidia.cuda_nvrtc as m; print(list(m.__path__)[0])";
    let output = std::process::Command::new("python3").args(["-c", find]).output().ok()?;
    let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim()).join("lib/libnvrtc.so.12");
    path.exists().then_some(path)
}

/// The number before `unit` in the compiler's resource report.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    line.split(unit).next()?.split_whitespace().last()?.parse().ok()
}

#[test]
fn every_kernel_has_a_source() {
    for kernel in Kernel::ALL {
        assert!(
            kernels::SOURCES.iter().any(|(name, _)| *name == kernel.0),
            "kernels/{}.cu is missing",
            kernel.0
        );
    }
}

#[test]
fn every_specialisation_compiles() {
    if std::env::var_os("FASQ_NVRTC").is_none()
        && let Some(path) = from_python()
    {
        // SAFETY: no other thread of this process reads the environment yet.
        unsafe { std::env::set_var("FASQ_NVRTC", path) };
    }
    if let Err(e) = nvrtc::version() {
        eprintln!("SKIPPED: {e}; pip install nvidia-cuda-nvrtc-cu12 lets this test run");
        return;
    }
    let units = |(arch, limit)| {
        every::units(limit as usize).into_iter().map(move |(unit, shared)| (unit, shared, arch, limit))
    };
    let jobs: Vec<_> = ARCHS.into_iter().flat_map(units).collect();
    let mut reports: Vec<_> = jobs
        .par_iter()
        .map(|(unit, shared, arch, limit)| {
            let name = unit.name();
            let image = match nvrtc::compile(&name, &unit.source(), *arch, true) {
                Ok(image) => image,
                Err(e) => return (format!("{name} sm_{arch}"), vec![format!("{e}")]),
            };
            assert!(!image.bytes.is_empty());
            let mut lines = Vec::new();
            for line in image.log.lines() {
                let spills = number_before(line, " bytes spill stores").unwrap_or(0);
                let fixed = number_before(line, " bytes smem").unwrap_or(0);
                // A step's phases are functions, which save registers of their caller once a call.
                if spills > if unit.file == "step" { 192 } else { 24 } {
                    lines.push(format!("spills registers: {line}"));
                } else if fixed + shared > *limit {
                    lines.push(format!("{fixed} + {shared} bytes of shared memory, of {limit}"));
                } else if line.contains("warning") {
                    lines.push(line.to_owned());
                }
                if line.contains("registers") {
                    println!(
                        "{name} sm_{arch}: {} + {shared} dynamic",
                        line.trim_start_matches("ptxas info    : ")
                    );
                }
            }
            (format!("{name} sm_{arch}"), lines)
        })
        .collect();
    println!("{} images", reports.len());
    reports.retain(|(_, lines)| !lines.is_empty());
    assert!(reports.is_empty(), "{reports:#?}");
}
