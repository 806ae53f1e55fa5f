//! Recorded launches, and their replay: directly, or as a CUDA graph once the same list comes again.
//!
//! A list of launches is plain data and so is its own key: a decode step records the same list every time (positions
//! live in buffers), and from the second time on one graph launch does it all.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::rc::Rc;

use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType};
use cudarc::driver::{CudaGraph, sys};

use super::device::{Device, Function, Memory, address, driver};
use super::join::join;
use super::kernels::Matvec;
use super::pack::pack;
use super::{error, step};
use crate::Result;
use crate::backend::Key;

/// Graphs that are kept.
const GRAPHS: usize = 16;

/// One argument of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arg {
    Address(u64),
    Word(u32),
    Params([u32; 16]),
}

impl Arg {
    /// A struct's words, at most 16.
    pub fn params(words: &[u32]) -> Self {
        let mut all = [0; 16];
        all[..words.len()].copy_from_slice(words);
        Self::Params(all)
    }
}

/// A kernel with its arguments, recorded.
#[derive(Clone)]
pub struct Kernel {
    pub function: Rc<Function>,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    pub args: Vec<Arg>,
    /// Of pq_matvec_shared.
    pub matvec: Option<Rc<Matvec>>,
    /// All blocks must be on the device together.
    pub resident: bool,
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.function, &other.function)
            && (self.grid, self.block, self.shared) == (other.grid, other.block, other.shared)
            && self.args == other.args
    }
}

impl Eq for Kernel {}

impl Hash for Kernel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Rc::as_ptr(&self.function), self.grid, self.block, self.shared, &self.args).hash(state);
    }
}

/// A kernel with its arguments and the memory that they name.
pub struct Launch {
    kernel: Kernel,
    keep: Vec<Memory>,
}

impl Launch {
    pub fn new(function: Rc<Function>, grid: [u32; 3], block: u32, shared: u32) -> Self {
        let args = Vec::with_capacity(16);
        let kernel = Kernel { function, grid, block, shared, args, matvec: None, resident: false };
        Self { kernel, keep: Vec::with_capacity(8) }
    }

    /// Says that this is a launch of pq_matvec_shared.
    pub fn matvec(mut self, matvec: Matvec) -> Self {
        self.kernel.matvec = Some(Rc::new(matvec));
        self
    }

    pub fn memory(self, memory: &Memory) -> Self {
        self.memory_at(memory, 0)
    }

    /// `memory` from byte `offset` on.
    pub fn memory_at(mut self, memory: &Memory, offset: u64) -> Self {
        self.kernel.args.push(Arg::Address(address(memory) + offset));
        self.keep.push(memory.clone());
        self
    }

    /// A pointer that is null where there is nothing.
    pub fn optional(mut self, memory: Option<&Memory>, offset: u64) -> Self {
        match memory {
            Some(memory) => self.memory_at(memory, offset),
            None => {
                self.kernel.args.push(Arg::Address(0));
                self
            }
        }
    }

    pub fn word(mut self, word: u32) -> Self {
        self.kernel.args.push(Arg::Word(word));
        self
    }

    /// One struct of at most 64 bytes: addresses, null where there is nothing, and words.
    pub fn record(mut self, memory: &[Option<&Memory>], words: &[u32]) -> Self {
        let mut all = Vec::with_capacity(16);
        for memory in memory {
            let at = memory.map_or(0, address);
            all.extend([at as u32, (at >> 32) as u32]);
            self.keep.extend(memory.cloned());
        }
        all.extend(words);
        self.params(&all)
    }

    /// A 64-bit number.
    pub fn long(mut self, number: u64) -> Self {
        self.kernel.args.push(Arg::Address(number));
        self
    }

    /// A parameter struct's words, at most 16.
    pub fn params(mut self, words: &[u32]) -> Self {
        self.kernel.args.push(Arg::params(words));
        self
    }
}

/// `y [n, m] = x [n, k] W^T` for W `[m, k]`, all row-major; x and W of `dtype`, y f32.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Gemm {
    pub dtype: cudaDataType,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub w: u64,
    pub x: u64,
    pub y: u64,
    /// Elements from one row of y to the next.
    pub y_stride: i32,
    /// Whether y is added to.
    pub accumulate: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Work {
    Kernel(Kernel),
    Gemm(Gemm),
}

/// Work recorded and not yet submitted, with the memory that it uses.
#[derive(Default)]
pub struct Commands {
    work: Vec<Work>,
    memory: Vec<Memory>,
}

impl Commands {
    pub fn launch(&mut self, launch: Launch) {
        self.work.push(Work::Kernel(launch.kernel));
        self.memory.extend(launch.keep);
    }

    pub fn gemm(&mut self, gemm: Gemm, keep: [&Memory; 3]) {
        self.work.push(Work::Gemm(gemm));
        self.memory.extend(keep.map(Memory::clone));
    }
}

/// A list of work as a graph.
struct Kept {
    work: Vec<Work>,
    key: Option<Key>,
    graph: CudaGraph,
    /// What the graph reads besides what the list names.
    _programs: Vec<Memory>,
}

/// The graphs of lists that came more than once.
#[derive(Default)]
pub struct Graphs {
    kept: RefCell<VecDeque<Kept>>,
    /// Hashes of lists that came once, latest last.
    seen: RefCell<VecDeque<u64>>,
}

impl Graphs {
    /// Enqueues commands that will not come again.
    pub fn once(&self, device: &Device, commands: &Commands) -> Result<()> {
        device.bind()?;
        replay(device, &commands.work)
    }

    /// Enqueues the commands of a key if they are a graph.
    pub fn replay(&self, device: &Device, key: &Key) -> Result<bool> {
        let kept = self.kept.borrow();
        let Some(kept) = kept.iter().find(|kept| kept.key.as_ref() == Some(key)) else { return Ok(false) };
        device.bind()?;
        kept.graph.launch().map_err(driver)?;
        Ok(true)
    }

    /// Enqueues the commands, which are the same whenever their key is.
    pub fn submit_as(&self, device: &Device, commands: Commands, key: Option<Key>) -> Result<()> {
        device.bind()?;
        let mut kept = self.kept.borrow_mut();
        if let Some(kept) = kept.iter_mut().find(|kept| kept.work == commands.work) {
            kept.key = key.or(kept.key);
            return kept.graph.launch().map_err(driver);
        }
        let mut hasher = DefaultHasher::new();
        commands.work.hash(&mut hasher);
        let hash = hasher.finish();
        let mut seen = self.seen.borrow_mut();
        let (planned, programs) = step::plan(device, &join(&pack(&commands.work)))?;
        if !seen.contains(&hash) {
            seen.push_back(hash);
            if seen.len() > GRAPHS {
                seen.pop_front();
            }
            return replay(device, &planned);
        }
        let graph = capture(device, &planned)?;
        graph.launch().map_err(driver)?;
        if kept.len() == GRAPHS {
            kept.pop_front();
        }
        kept.push_back(Kept { work: commands.work, key, graph, _programs: programs });
        Ok(())
    }
}

fn capture(device: &Device, work: &[Work]) -> Result<CudaGraph> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    device.stream.begin_capture(mode).map_err(driver)?;
    let replayed = replay(device, work);
    let graph = device.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(driver);
    replayed?;
    graph?.ok_or_else(|| error("a list of launches made an empty graph"))
}

fn replay(device: &Device, work: &[Work]) -> Result<()> {
    for work in work {
        match work {
            Work::Kernel(kernel) => launch(device, kernel)?,
            Work::Gemm(gemm) => multiply(device, gemm)?,
        }
    }
    Ok(())
}

fn launch(device: &Device, kernel: &Kernel) -> Result<()> {
    let mut pointers: Vec<*mut c_void> = kernel
        .args
        .iter()
        .map(|arg| match arg {
            Arg::Address(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Word(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Params(value) => std::ptr::from_ref(value).cast_mut().cast(),
        })
        .collect();
    let mut attribute = if kernel.resident {
        sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { cooperative: 1 },
        }
    } else {
        // Lets this kernel start while the one before it ends; see wait_inputs() in prelude.cuh.
        sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        }
    };
    let [x, y, z] = kernel.grid;
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: kernel.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: kernel.shared,
        hStream: device.stream.cu_stream(),
        attrs: &raw mut attribute,
        numAttrs: u32::from(kernel.resident || device.arch >= 90),
    };
    // SAFETY: the function is loaded (Commands holds it, and the device's cache), its parameters are of the sizes and
    // in the order of `args` (tests/conformance runs every kernel), and the memory that they name is alive: Commands
    // holds it until this is enqueued, and memory is freed in stream order.
    unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            kernel.function.function.cu_function(),
            pointers.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    }
    .result()
    .map_err(driver)
}

fn multiply(device: &Device, gemm: &Gemm) -> Result<()> {
    let blas = device.blas()?;
    let (alpha, beta) = (1.0f32, if gemm.accumulate { 1.0f32 } else { 0.0 });
    // cuBLAS is column-major: y^T [m, n] = (W^T)^T [m, k] x^T [k, n].
    // SAFETY: the addresses are of live memory of these sizes (see `launch`), the strides those of its rows.
    unsafe {
        cudarc::cublas::result::gemm_ex(
            *blas.handle(),
            cublasOperation_t::CUBLAS_OP_T,
            cublasOperation_t::CUBLAS_OP_N,
            gemm.m,
            gemm.n,
            gemm.k,
            std::ptr::from_ref(&alpha).cast(),
            gemm.w as *const c_void,
            gemm.dtype,
            gemm.k,
            gemm.x as *const c_void,
            gemm.dtype,
            gemm.k,
            std::ptr::from_ref(&beta).cast(),
            gemm.y as *mut c_void,
            cudaDataType::CUDA_R_32F,
            gemm.y_stride,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(error)
}
