//! Recorded launches enqueued: directly, or as a CUDA graph once the same list of operations comes again.
//!
//! A decode step records the same list every time (positions live in buffers), and from the second time on one graph
//! launch does it all.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::c_void;

use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t, cudaDataType};
use cudarc::driver::{CudaFunction, CudaGraph, sys};

use super::launch::{Arg, Commands, Gemm, Kernel, Work};
use super::memory::{Memory, driver};
use super::{Device, error};
use crate::Result;
use crate::backend::Key;
use crate::ops::Identity;

/// Graphs that are kept.
const GRAPHS: usize = 16;

/// A list of operations as a graph.
struct Kept {
    list: Vec<Identity>,
    key: Option<Key>,
    graph: CudaGraph,
    /// What the graph reads besides the operations' buffers and the device's scratch memory.
    _own: Vec<Memory>,
}

/// The graphs of lists that came more than once.
#[derive(Default)]
pub struct Graphs {
    kept: RefCell<VecDeque<Kept>>,
    /// Lists that came once, latest last.
    seen: RefCell<VecDeque<Vec<Identity>>>,
}

impl Graphs {
    /// Enqueues the operations of a key if they are a graph.
    pub fn replay(&self, device: &Device, key: &Key) -> Result<bool> {
        let kept = self.kept.borrow();
        let Some(kept) = kept.iter().find(|kept| kept.key.as_ref() == Some(key)) else { return Ok(false) };
        device.bind()?;
        kept.graph.launch().map_err(driver)?;
        Ok(true)
    }

    /// Enqueues a list of operations, the same whenever its key is: by the launches that `lower` makes of it, unless it is
    /// kept.
    pub fn submit(
        &self,
        device: &Device,
        list: Vec<Identity>,
        key: Option<Key>,
        lower: impl FnOnce() -> Result<Commands>,
    ) -> Result<()> {
        device.bind()?;
        if let Some(kept) = self.kept.borrow_mut().iter_mut().find(|kept| kept.list == list) {
            kept.key = key.or(kept.key);
            return kept.graph.launch().map_err(driver);
        }
        let commands = lower()?;
        let mut seen = self.seen.borrow_mut();
        if !seen.contains(&list) {
            if seen.len() == GRAPHS {
                seen.pop_front();
            }
            seen.push_back(list);
            return enqueue(device, &commands);
        }
        // Modules cannot be loaded into a graph.
        let functions = device.functions(&commands)?;
        let graph = capture(device, &commands, &functions)?;
        graph.launch().map_err(driver)?;
        let mut kept = self.kept.borrow_mut();
        if kept.len() == GRAPHS {
            kept.pop_front();
        }
        kept.push_back(Kept { list, key, graph, _own: commands.own });
        Ok(())
    }
}

fn capture(device: &Device, commands: &Commands, functions: &[CudaFunction]) -> Result<CudaGraph> {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    device.stream.begin_capture(mode).map_err(driver)?;
    let replayed = enqueue_loaded(device, commands, functions);
    let graph = device.stream.end_capture(sys::CUgraphInstantiate_flags(0)).map_err(driver);
    replayed?;
    graph?.ok_or_else(|| error("a list of launches made an empty graph"))
}

/// Enqueues launches, once.
pub fn enqueue(device: &Device, commands: &Commands) -> Result<()> {
    device.bind()?;
    enqueue_loaded(device, commands, &device.functions(commands)?)
}

/// Enqueues launches of these kernels, in their order.
fn enqueue_loaded(device: &Device, commands: &Commands, functions: &[CudaFunction]) -> Result<()> {
    let mut functions = functions.iter();
    for work in &commands.work {
        match work {
            Work::Kernel(kernel) => {
                let function = functions.next().ok_or_else(|| error("a launch has no loaded kernel"))?;
                launch(device, function, kernel)?;
            }
            Work::Gemm(gemm) => multiply(device, gemm)?,
        }
    }
    Ok(())
}

fn launch(device: &Device, function: &CudaFunction, kernel: &Kernel) -> Result<()> {
    let mut pointers: Vec<*mut c_void> = kernel
        .args
        .iter()
        .map(|arg| match arg {
            Arg::Address(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Word(value) => std::ptr::from_ref(value).cast_mut().cast(),
            Arg::Struct(words) => words.as_ptr().cast_mut().cast(),
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
        numAttrs: u32::from(kernel.resident || device.capabilities.arch >= 90),
    };
    // SAFETY: the function is loaded (the device keeps it), its parameters are of the sizes and in the order of `args`
    // (tests/conformance runs every kernel), and the memory that they name is alive: the operations borrow it until this is
    // enqueued, scratch memory lives as long as the device, and memory is freed in stream order.
    unsafe {
        sys::cuLaunchKernelEx(
            &raw const config,
            function.cu_function(),
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
