//! Recorded launches enqueued: directly, or as a CUDA graph once the same list comes again.
//!
//! A list of launches is its own key: a decode step records the same list every time (positions live in buffers), and
//! from the second time on one graph launch does it all. Before it is enqueued, what neighbours can do together is
//! brought together.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;
use std::hash::{DefaultHasher, Hash, Hasher};

use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType};
use cudarc::driver::{CudaGraph, sys};

use super::commands::{Arg, Commands, Gemm, Kernel, Work};
use super::device::Device;
use super::join::join;
use super::memory::{Memory, driver};
use super::pack::pack;
use super::{error, step};
use crate::Result;
use crate::backend::Key;

/// Graphs that are kept.
const GRAPHS: usize = 16;

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
