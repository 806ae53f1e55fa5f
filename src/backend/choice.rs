//! Devices by name.

use super::*;
use crate::Error;

/// A device to compute on; GPUs by their number, from 0. The same variants in every build: a program that matches on
/// them compiles whatever features this crate has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Cpu,
    Cuda(usize),
    Wgpu(usize),
}

/// Work that runs on any backend.
pub trait BackendTask {
    type Output;

    fn run<B: Backend + Clone>(self, backend: B) -> Result<Self::Output>;
}

impl Choice {
    /// Opens the device and runs `task` on its backend: a choice at run time becomes a static type.
    ///
    /// # Errors
    /// A backend that is not built in, a device that cannot be opened, and what the task returns.
    pub fn run<T: BackendTask>(self, task: T) -> Result<T::Output> {
        match self {
            Choice::Cpu => task.run(cpu::Cpu),
            #[cfg(feature = "cuda")]
            Choice::Cuda(index) => task.run(cuda::Cuda::open(index)?),
            #[cfg(not(feature = "cuda"))]
            Choice::Cuda(_) => Err(not_built("cuda")),
            // A browser cannot wait for a GPU: its program awaits `wgpu::Wgpu::open`.
            #[cfg(all(feature = "wgpu", not(target_arch = "wasm32")))]
            Choice::Wgpu(index) => task.run(wgpu::Wgpu::new(index)?),
            #[cfg(not(all(feature = "wgpu", not(target_arch = "wasm32"))))]
            Choice::Wgpu(_) => Err(not_built("wgpu")),
        }
    }
}

/// The device called `name`: `cpu`, `cuda` or `cuda:N`, `wgpu` or `wgpu:N`, `auto`, the best that is built in and
/// present, or `N`: with that number among the GPUs of auto's kind.
///
/// # Errors
/// Another name, or a kind that is not built in.
pub fn choose(name: &str) -> Result<Choice> {
    let bad =
        || Error::mismatch("--device", "auto, cpu, cuda, wgpu, cuda:N, wgpu:N or N", format!("{name:?}"));
    let (kind, index) = match name.split_once(':') {
        Some((kind @ ("cuda" | "wgpu"), index)) => (kind, Some(index)),
        Some(_) => return Err(bad()),
        None if name.starts_with(|c: char| c.is_ascii_digit()) => (best(), Some(name)),
        None => (if name == "auto" { best() } else { name }, None),
    };
    let numbered = index.is_some();
    let index: usize = index.map_or(Ok(0), str::parse).map_err(|_| bad())?;
    match kind {
        "cpu" if numbered => {
            Err(Error::invalid("--device", format!("no GPU was found, so there is none of number {index}")))
        }
        "cpu" => Ok(Choice::Cpu),
        "cuda" if cfg!(feature = "cuda") => Ok(Choice::Cuda(index)),
        "wgpu" if cfg!(feature = "wgpu") => Ok(Choice::Wgpu(index)),
        "cuda" | "wgpu" => Err(not_built(kind)),
        _ => Err(bad()),
    }
}

fn not_built(kind: &str) -> Error {
    Error::backend(
        kind,
        format!("not built into this program: use --device cpu, or build with --features {kind}"),
    )
}

/// The best kind of device that is built in and present.
fn best() -> &'static str {
    #[cfg(feature = "cuda")]
    if cuda::available() {
        return "cuda";
    }
    #[cfg(all(feature = "wgpu", not(target_arch = "wasm32")))]
    if wgpu::Wgpu::has_gpu() {
        return "wgpu";
    }
    "cpu"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(choose("cpu").unwrap(), Choice::Cpu);
        assert!(choose("auto").is_ok());
        for name in
            ["", "tpu", "cuda:", "cuda:x", "cuda:-1", "wgpu:1x", "-1", "1x", "cpu:0", "auto:1", "cuda:1:2"]
        {
            assert!(choose(name).is_err(), "{name:?} was taken");
        }
    }

    #[cfg(all(feature = "cuda", feature = "wgpu"))]
    #[test]
    fn gpus_have_numbers() {
        assert_eq!(choose("cuda").unwrap(), Choice::Cuda(0));
        assert_eq!(choose("cuda:1").unwrap(), Choice::Cuda(1));
        assert_eq!(choose("wgpu").unwrap(), Choice::Wgpu(0));
        assert_eq!(choose("wgpu:2").unwrap(), Choice::Wgpu(2));
        let first = choose("auto").unwrap();
        assert_eq!(choose("0").ok(), Some(first).filter(|first| *first != Choice::Cpu));
    }
}
