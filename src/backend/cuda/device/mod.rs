//! A CUDA device: context, stream, memory, compiled and loaded kernels, and launches.

pub mod abi;
pub mod cache;
pub mod graphs;
pub mod launch;
pub mod memory;
mod modules;
pub mod nvrtc;
mod transfer;
pub mod unit;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::cublas::CudaBlas;
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaModule, CudaStream, sys};
use half::f16;

use crate::{Error, Result};
use memory::{Memory, address, describe, driver};
use transfer::Staging;
use unit::{Function, Unit};

/// Oldest architecture that the kernels' instructions need (mma.sync m16n8k16, cp.async: Ampere).
const OLDEST_ARCH: u32 = 80;

/// Purposes of the scratch memory that operations share; each grows to the largest size asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scratch {
    /// x as f16 or bf16.
    HalfInput,
    /// Decoded rows of a weight.
    HalfWeight,
    /// Partial sums.
    Partial,
    /// Softmax sums of attention.
    Sums,
    /// A row that the next product of the persistent kernel rotates itself.
    Plain,
    /// x in the order of pq_matmul_tiles.
    Packed,
    /// Parts of pq_matmul_tiles' outputs that are there: zeros between launches.
    Arrivals,
    /// What the delta rule makes of chunks of rows before it goes through them.
    Chunks,
    /// Results of argmax.
    Found,
    /// Of cuBLAS.
    Workspace,
}

/// What the choice of kernels depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Compute capability, major * 10 + minor.
    pub arch: u32,
    /// Multiprocessors.
    pub sms: u32,
    /// Shared memory that a block may have, in bytes.
    pub shared_limit: usize,
}

pub struct Device {
    pub stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
    name: String,
    pub capabilities: Capabilities,
    modules: RefCell<HashMap<Unit, Arc<CudaModule>>>,
    functions: RefCell<HashMap<Function, CudaFunction>>,
    scratch: RefCell<HashMap<Scratch, Memory>>,
    /// Scratch that became too small; graphs may still use it.
    outgrown: RefCell<Vec<Memory>>,
    universal: RefCell<Vec<(Vec<f16>, Memory)>>,
    blas: RefCell<Option<Rc<CudaBlas>>>,
    staging: RefCell<Option<Staging>>,
}

/// How many devices there are; an error that says what is missing where there are none.
pub fn count() -> Result<usize> {
    // SAFETY: loading the driver has no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return Err(error("no NVIDIA driver is installed (libcuda was not found)"));
    }
    match CudaContext::device_count() {
        Ok(count) if count > 0 => Ok(count as usize),
        Ok(_) => Err(error("the NVIDIA driver finds no GPU")),
        Err(e) => Err(error(format!("the NVIDIA driver finds no GPU: {}", describe(&e)))),
    }
}

impl Device {
    pub fn open(index: usize) -> Result<Self> {
        let count = count()?;
        if index >= count {
            return Err(Error::mismatch(
                "CUDA device",
                format!("below {count}, the devices that there are"),
                index,
            ));
        }
        let context = CudaContext::new(index).map_err(driver)?;
        // SAFETY: every use of this context's memory is on the one stream below, in order.
        unsafe { context.disable_event_tracking() };
        let (major, minor) = context.compute_capability().map_err(driver)?;
        let arch = (major * 10 + minor) as u32;
        let name = context.name().map_err(driver)?;
        if arch < OLDEST_ARCH {
            return Err(error(format!(
                "{name} has compute capability {major}.{minor}; the kernels need 8.0"
            )));
        }
        nvrtc::version()?;
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| context.attribute(which).map_err(driver);
        let sms = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let shared_limit =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize;
        let stream = context.new_stream().map_err(driver)?;
        Ok(Self {
            stream,
            name,
            capabilities: Capabilities { arch, sms, shared_limit },
            context,
            functions: RefCell::default(),
            modules: RefCell::default(),
            scratch: RefCell::default(),
            outgrown: RefCell::default(),
            universal: RefCell::default(),
            blas: RefCell::default(),
            staging: RefCell::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Theoretical memory bandwidth in bytes per second, by the memory's clock and bus as the driver reports them.
    pub fn peak_bandwidth(&self) -> Result<f64> {
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| self.context.attribute(which).map(f64::from).map_err(driver);
        let clock = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bus = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?;
        Ok(2.0 * clock * 1e3 * bus / 8.0)
    }

    /// Free and total memory in bytes, once what was enqueued is done: memory is freed in stream order.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.synchronize()?;
        self.context.mem_get_info().map_err(driver)
    }

    /// Makes this device's context current on this thread.
    pub fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(driver)
    }

    /// An event that keeps the time.
    pub fn event(&self) -> Result<CudaEvent> {
        self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT)).map_err(driver)
    }

    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().map_err(driver)
    }

    /// `words` words of memory, zeroed or as they come.
    pub fn alloc(&self, words: usize, zeroed: bool) -> Result<Memory> {
        let words = words.max(4);
        let memory = if zeroed {
            self.stream.alloc_zeros::<u32>(words)
        } else {
            // SAFETY: callers that ask for memory as it comes write it before they read it.
            unsafe { self.stream.alloc::<u32>(words) }
        };
        memory.map(Arc::new).map_err(|e| self.out_of_memory(e, words))
    }

    /// Fails if `bytes` exceed free memory.
    pub fn check_memory(&self, bytes: u64) -> Result<()> {
        let (free, total) = self.memory()?;
        if bytes > free as u64 {
            return Err(too_large(&self.name, bytes, free, total));
        }
        Ok(())
    }

    fn out_of_memory(&self, e: DriverError, words: usize) -> Error {
        match (e.0, self.memory()) {
            (sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY, Ok((free, total))) => {
                too_large(&self.name, words as u64 * 4, free, total)
            }
            _ => driver(e),
        }
    }

    /// Copies bytes to the start of `memory`, which is large enough.
    pub fn write(&self, memory: &Memory, bytes: &[u8]) -> Result<()> {
        self.write_at(memory, 0, bytes)
    }

    /// Copies bytes to `memory`, `at` bytes from its start.
    pub fn write_at(&self, memory: &Memory, at: usize, bytes: &[u8]) -> Result<()> {
        if at + bytes.len() > memory.num_bytes() {
            return Err(error(format!("writing bytes {at}..{} of {}", at + bytes.len(), memory.num_bytes())));
        }
        self.bind()?;
        let to = address(memory) + at as u64;
        // SAFETY: `memory` is alive and large enough; a copy from pageable memory has read it on return.
        unsafe { result::memcpy_htod_async(to, bytes, self.stream.cu_stream()) }.map_err(driver)
    }

    /// [`Device::write`] of many bytes.
    pub fn write_large(&self, memory: &Memory, bytes: &[u8]) -> Result<()> {
        self.staged(|staging| staging.write(&self.stream, memory, bytes))
    }

    /// The first bytes of `memory`, after everything enqueued so far.
    pub fn read_large(&self, memory: &Memory, bytes: &mut [u8]) -> Result<()> {
        self.staged(|staging| staging.read(&self.stream, memory, bytes))
    }

    fn staged(&self, copy: impl FnOnce(&mut Staging) -> Result<()>) -> Result<()> {
        self.bind()?;
        let mut staging = self.staging.borrow_mut();
        copy(match &mut *staging {
            Some(staging) => staging,
            none => none.insert(Staging::new(&self.stream)?),
        })
    }

    /// From now on memory that is freed stays with this program: work that allocates the same again and again need
    /// not wait for the system.
    pub fn keep_freed_memory(&self) -> Result<()> {
        self.bind()?;
        let (mut pool, mut keep) = (std::ptr::null_mut(), u64::MAX);
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        // SAFETY: the pool is the device's own, and the attribute a 64-bit number.
        unsafe {
            sys::cuDeviceGetDefaultMemPool(&raw mut pool, self.context.cu_device())
                .result()
                .map_err(driver)?;
            sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut keep).cast()).result().map_err(driver)
        }
    }

    /// `words` words from word `start`, after everything enqueued so far.
    pub fn read(&self, memory: &Memory, start: usize, words: usize) -> Result<Vec<u32>> {
        self.bind()?;
        let mut out = vec![0u32; words];
        if words > 0 {
            let view = memory.try_slice(start..start + words);
            let view = view.ok_or_else(|| {
                error(format!("reading words {start}..{} of {}", start + words, memory.len()))
            })?;
            self.stream.memcpy_dtoh(&view, &mut out).map_err(driver)?;
        }
        self.synchronize()?;
        Ok(out)
    }

    /// Scratch memory of at least `words` words; only arrivals are zeros.
    pub fn scratch(&self, purpose: Scratch, words: usize) -> Result<Memory> {
        if let Some(memory) = self.scratch.borrow().get(&purpose).filter(|memory| memory.len() >= words) {
            return Ok(memory.clone());
        }
        let memory = self.alloc(words.next_power_of_two(), purpose == Scratch::Arrivals)?;
        let outgrown = self.scratch.borrow_mut().insert(purpose, memory.clone());
        self.outgrown.borrow_mut().extend(outgrown);
        Ok(memory)
    }

    /// A universal codebook, once for all matrices: kernels that share it tell by its address.
    pub fn universal(&self, entries: Vec<f16>) -> Result<Memory> {
        let mut all = self.universal.borrow_mut();
        if let Some((_, memory)) = all.iter().find(|(known, _)| *known == entries) {
            return Ok(memory.clone());
        }
        let memory = self.alloc(entries.len().div_ceil(2), false)?;
        self.write(&memory, bytemuck::cast_slice(&entries))?;
        all.push((entries, memory.clone()));
        Ok(memory)
    }

    /// cuBLAS on this device's stream.
    pub fn blas(&self) -> Result<Rc<CudaBlas>> {
        if let Some(blas) = &*self.blas.borrow() {
            return Ok(blas.clone());
        }
        // SAFETY: loading cuBLAS has no preconditions.
        if !unsafe { cudarc::cublas::sys::is_culib_present() } {
            return Err(error("libcublas (part of the CUDA runtime) is not installed"));
        }
        let blas = Rc::new(CudaBlas::new(self.stream.clone()).map_err(error)?);
        let workspace = self.scratch(Scratch::Workspace, 8 << 20)?;
        let pointer = address(&workspace) as *mut c_void;
        // SAFETY: the workspace is as large as it says, and scratch of this purpose never grows, so lives as long.
        unsafe { cudarc::cublas::sys::cublasSetWorkspace_v2(*blas.handle(), pointer, workspace.num_bytes()) }
            .result()
            .map_err(error)?;
        *self.blas.borrow_mut() = Some(blas.clone());
        Ok(blas)
    }
}

fn too_large(name: &str, needed: u64, free: usize, total: usize) -> Error {
    let [needed, free, total] = [needed, free as u64, total as u64].map(|b| b as f64 / f64::from(1 << 30));
    error(format!("needs {needed:.2} GiB; {name} has {free:.2} GiB free of {total:.2}"))
}

/// An error of this backend.
pub fn error(why: impl Display) -> Error {
    Error::backend("cuda", why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_room_says_how_much_there_is() {
        let text = too_large("NVIDIA H200", 3 << 30, 1 << 29, 1 << 31).to_string();
        assert!(text.contains("needs 3.00 GiB; NVIDIA H200 has 0.50 GiB free of 2.00"), "{text}");
    }
}
