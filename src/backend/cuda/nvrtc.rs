//! Kernel source to machine code: NVRTC, and a cache of its output on disk.

use std::ffi::{CStr, CString};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use cudarc::nvrtc::{result as nvrtc, sys};

use super::error;
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

fn options(target: &str) -> Vec<String> {
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

/// [`compile`], from the cache where it has this source for this architecture by this compiler.
pub fn cached(name: &str, source: &str, arch: u32) -> Result<Vec<u8>> {
    let Some(directory) = directory() else { return Ok(compile(name, source, arch, false)?.bytes) };
    let key = digest(&(source, options(&target(arch)?), version()?));
    let path = directory.join(format!("{name}-{arch}-{key:016x}.cubin"));
    if let Some(bytes) = read(&path, key) {
        return Ok(bytes);
    }
    let bytes = compile(name, source, arch, false)?.bytes;
    if let Err(e) = write(&path, key, &bytes) {
        log::debug!("kernel cache {}: {e}", path.display());
    }
    Ok(bytes)
}

/// `FASQ_CACHE`, else fasq in the user's cache directory.
pub(super) fn directory() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    var("FASQ_CACHE").or_else(|| Some(base()?.join("fasq")))
}

pub(super) fn digest(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// An entry's bytes, if it is whole: key and checksum, then the image.
pub(super) fn read(path: &Path, key: u64) -> Option<Vec<u8>> {
    let entry = std::fs::read(path).ok()?;
    let (head, image) = entry.split_at_checked(16)?;
    let expected = [key.to_le_bytes(), digest(&image).to_le_bytes()].concat();
    (head == expected).then(|| image.to_vec())
}

/// Writes an entry beside its place and moves it there, so that no reader sees half of one.
pub(super) fn write(path: &Path, key: u64, image: &[u8]) -> std::io::Result<()> {
    let entry = [&key.to_le_bytes(), &digest(&image).to_le_bytes(), image].concat();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let beside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&beside, entry)?;
    std::fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_cache_entries_are_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/kernel.cubin");
        assert_eq!(read(&path, 7), None);
        write(&path, 7, b"machine code").unwrap();
        assert_eq!(read(&path, 7).unwrap(), b"machine code");
        assert_eq!(read(&path, 8), None, "another key");
        let mut entry = std::fs::read(&path).unwrap();
        *entry.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &entry).unwrap();
        assert_eq!(read(&path, 7), None, "a flipped bit");
        std::fs::write(&path, &entry[..9]).unwrap();
        assert_eq!(read(&path, 7), None, "cut off");
    }
}
