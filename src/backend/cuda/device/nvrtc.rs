//! Kernel source to machine code: NVRTC.

use std::ffi::{CStr, CString};
use std::sync::OnceLock;

use cudarc::nvrtc::{result as nvrtc, sys};

use super::cache::Entry;
use super::error;
use super::unit::Unit;
use crate::Result;

/// Machine code for one architecture, or PTX for the driver to translate.
pub struct Image {
    pub bytes: Vec<u8>,
    /// What the compiler had to say: warnings, and registers and memory of each kernel where asked for.
    pub log: String,
}

/// Loads libnvrtc: the file that the environment variable `FASQ_NVRTC` names, else the system's.
fn load() -> Result<()> {
    static LOADED: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    let load = || {
        if let Some(path) = std::env::var_os("FASQ_NVRTC") {
            // SAFETY: libnvrtc's initialisers have no preconditions. The library stays loaded for good, so that the
            // loader finds it by its name from here on.
            let library = unsafe { libloading::Library::new(&path) };
            let library = library.map_err(|e| format!("FASQ_NVRTC={}: {e}", path.display()))?;
            std::mem::forget(library);
        }
        // SAFETY: as above.
        if unsafe { sys::is_culib_present() } {
            Ok(())
        } else {
            Err("libnvrtc (the CUDA runtime compiler) is not installed; FASQ_NVRTC can name the file".into())
        }
    };
    LOADED.get_or_init(load).clone().map_err(error)
}

/// The compiler's version.
pub fn version() -> Result<(i32, i32)> {
    load()?;
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are valid for writing.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().map_err(error)?;
    Ok((major, minor))
}

/// `sm_86` where the compiler knows the architecture, else PTX of the newest one before it.
fn target(arch: u32) -> Result<String> {
    load()?;
    let mut count = 0;
    // SAFETY: the pointer is valid for writing.
    unsafe { sys::nvrtcGetNumSupportedArchs(&raw mut count) }.result().map_err(error)?;
    let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: the array has as many elements as the call above promised.
    unsafe { sys::nvrtcGetSupportedArchs(known.as_mut_ptr()) }.result().map_err(error)?;
    let newest = known.iter().filter_map(|a| u32::try_from(*a).ok()).filter(|a| *a <= arch).max();
    match newest {
        Some(newest) if newest == arch => Ok(format!("sm_{arch}")),
        Some(newest) => Ok(format!("compute_{newest}")),
        None => Err(error(format!("the installed NVRTC cannot compile for architecture {arch}"))),
    }
}

pub fn options(target: &str) -> Vec<String> {
    let fixed = [
        "--std=c++17",
        "--device-as-default-execution-space", // lambdas in kernels
        "--diag-suppress=177,186",             // constants that one specialisation does not use
    ];
    std::iter::once(format!("--gpu-architecture={target}")).chain(fixed.map(String::from)).collect()
}

/// Compiles `source`; `name` is for messages, `verbose` puts each kernel's resources in the log.
pub fn compile(name: &str, source: &str, arch: u32, verbose: bool) -> Result<Image> {
    let target = target(arch)?;
    let mut options = options(&target);
    if verbose {
        options.push("--ptxas-options=-v".into());
    }
    let invalid = |e| error(format!("kernel {name}: {e}"));
    let source = CString::new(source).map_err(invalid)?;
    let file = CString::new(format!("{name}.cu")).map_err(invalid)?;
    let program = Program(nvrtc::create_program(&source, Some(&file)).map_err(error)?);
    // SAFETY: the program is alive until the end of this function.
    let compiled = unsafe { nvrtc::compile_program(program.0, &options) };
    // SAFETY: as above; the log is a C string.
    let log = unsafe { nvrtc::get_program_log(program.0) }.map_err(error)?;
    let log: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
    let log =
        CStr::from_bytes_until_nul(&log).map(|log| log.to_string_lossy().into_owned()).unwrap_or_default();
    compiled.map_err(|e| error(format!("kernel {name} for {target}: {e}\n{log}")))?;
    let bytes = if target.starts_with("sm_") {
        let mut size = 0;
        // SAFETY: the pointer is valid for writing, and the buffer then has the size that the call gave.
        unsafe { sys::nvrtcGetCUBINSize(program.0, &raw mut size) }.result().map_err(error)?;
        let mut bytes = vec![0u8; size];
        // SAFETY: as above.
        unsafe { sys::nvrtcGetCUBIN(program.0, bytes.as_mut_ptr().cast()) }.result().map_err(error)?;
        bytes
    } else {
        // SAFETY: the program was compiled.
        unsafe { nvrtc::get_ptx(program.0) }.map_err(error)?.into_iter().map(|c| c as u8).collect()
    };
    Ok(Image { bytes, log })
}

/// Frees an NVRTC program.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by create_program and not freed before.
        if let Err(e) = unsafe { nvrtc::destroy_program(self.0) } {
            log::debug!("freeing an NVRTC program: {e}");
        }
    }
}

/// Machine code.
pub struct Compiled {
    pub bytes: Vec<u8>,
    /// Whether it was compiled now: the cache did not have it.
    pub fresh: bool,
}

/// [`compile`] of a unit, from the cache where it has this text for this architecture by this compiler.
pub fn cached(unit: &Unit, arch: u32) -> Result<Compiled> {
    let (major, minor) = version()?;
    let (text, options, version) =
        (unit.text(), options(&target(arch)?).join(" "), format!("{major}.{minor}"));
    // Not by the unit's name, which is longer than a file's may be.
    let entry = Entry::of(&format!("{}-{arch}", unit.source().name()), "cubin", &[&text, &options, &version]);
    if let Some(bytes) = entry.as_ref().and_then(Entry::read) {
        return Ok(Compiled { bytes, fresh: false });
    }
    let bytes = compile(&unit.name(), &text, arch, false)?.bytes;
    if let Some(entry) = entry
        && let Err(e) = entry.write(&bytes)
    {
        log::warn!("a compiled kernel cannot be kept, {}: {e}", entry.path().display());
    }
    Ok(Compiled { bytes, fresh: true })
}
