//! Devices by name.

use super::*;
use crate::Error;

/// A device to compute on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Cpu,
    /// By its index among the CUDA devices.
    #[cfg(feature = "cuda")]
    Cuda(usize),
    #[cfg(feature = "wgpu")]
    Wgpu,
}

/// The device called `name`: `cpu`, `wgpu`, `cuda`, `cuda:1` (the second of them), `1` (the same), or `auto`, the best
/// that is built in and present.
pub fn choose(name: &str) -> Result<Choice> {
    let bad = || Error::mismatch("--device", "auto, cpu, wgpu, cuda, cuda:N or N", format!("{name:?}"));
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index.parse().map_err(|_| bad())?)),
        None => match name.parse() {
            Ok(index) => ("cuda", Some(index)),
            Err(_) => (name, None),
        },
    };
    match (kind, index) {
        ("auto", None) => Ok(best()),
        ("cpu", None) => Ok(Choice::Cpu),
        #[cfg(feature = "wgpu")]
        ("wgpu", None) => Ok(Choice::Wgpu),
        #[cfg(not(feature = "wgpu"))]
        ("wgpu", None) => Err(not_built(kind)),
        #[cfg(feature = "cuda")]
        ("cuda", index) => Ok(Choice::Cuda(index.unwrap_or(0))),
        #[cfg(not(feature = "cuda"))]
        ("cuda", Some(0usize..) | None) => Err(not_built(kind)),
        _ => Err(bad()),
    }
}

fn best() -> Choice {
    #[cfg(feature = "cuda")]
    if cuda::available() {
        return Choice::Cuda(0);
    }
    #[cfg(all(feature = "wgpu", not(target_arch = "wasm32")))]
    if wgpu::Wgpu::has_gpu() {
        return Choice::Wgpu;
    }
    Choice::Cpu
}

#[cfg(not(all(feature = "wgpu", feature = "cuda")))]
fn not_built(name: &str) -> Error {
    Error::backend(name, "not built into this program; --device cpu is")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(choose("cpu").unwrap(), Choice::Cpu);
        assert!(choose("auto").is_ok());
        for name in ["", "tpu", "cuda:", "cuda:x", "cuda:-1", "-1", "cpu:0", "auto:1", "cuda:1:2"] {
            assert!(choose(name).is_err(), "{name:?} was taken");
        }
    }

    #[cfg(feature = "cuda")]
    #[test]
    fn cuda_devices_have_numbers() {
        assert_eq!(choose("cuda").unwrap(), Choice::Cuda(0));
        assert_eq!(choose("cuda:1").unwrap(), Choice::Cuda(1));
        assert_eq!(choose("1").unwrap(), Choice::Cuda(1));
    }
}
