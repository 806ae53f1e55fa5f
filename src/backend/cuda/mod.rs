//! The CUDA backend: NVIDIA GPUs from Ampere (RTX 3090) on.
//!
//! The driver, NVRTC and cuBLAS are loaded at run time; a program built with this backend runs without them and says
//! what is missing when the backend is asked for. Kernels (kernels/*.cu) are compiled for the device at first use and
//! cached on disk.
//!
//! | room | what it holds | imports |
//! |---|---|---|
//! | [`device`] | driver, memory, sources and NVRTC, launches and graphs | |
//! | [`lower`] | operations to launches, a file for each kind; weights | device |
//! | [`schedule`] | what is fused, the persistent kernel, measured algorithms | lower, device |
//! | quantizing | k-means, assignment, Hessians | lower, device |
//! | backend | [`crate::backend::Backend`] for [`Cuda`] | all |
//!
//! A list of operations is planned ([`schedule::plan`]), lowered to launches, and becomes a CUDA graph when it comes again.
//! What the RTX 3090 can reach is in [`roofline`].

mod backend;
pub mod device;
pub mod lower;
mod quantizing;
#[doc = include_str!("roofline.md")]
pub mod roofline {}
pub mod schedule;
#[cfg(any(test, feature = "test-support"))]
pub mod support;

use std::rc::Rc;

pub use device::nvrtc;
pub use lower::{Buffer, MatmulAlgorithm, Precision, Weight};

use crate::Result;
use device::Device;
use device::graphs::Graphs;
use lower::Lowering;
use schedule::Tuner;

/// One CUDA device; clones are handles to the same.
#[derive(Clone)]
pub struct Cuda {
    lowering: Lowering,
    graphs: Rc<Graphs>,
    tuner: Rc<Tuner>,
    forced: Option<MatmulAlgorithm>,
}

/// Whether there is a CUDA device and the libraries to use it.
pub fn available() -> bool {
    device::count().is_ok() && nvrtc::version().is_ok()
}

impl Cuda {
    /// Device `index`, counted from 0 as the driver does.
    ///
    /// # Errors
    /// Names the missing library, or the devices there are.
    pub fn open(index: usize) -> Result<Self> {
        let device = Rc::new(Device::open(index)?);
        let tuner = Rc::new(Tuner::new(&device));
        let lowering = Lowering { device, precision: Precision::Half };
        Ok(Self { lowering, graphs: Rc::default(), tuner, forced: None })
    }

    /// The same device with one algorithm for several rows and product-quantized matrices, where it takes them.
    pub fn with_algorithm(self, algorithm: MatmulAlgorithm) -> Self {
        Self { forced: Some(algorithm), ..self }
    }

    /// The same device with another precision.
    #[cfg(any(test, feature = "test-support"))]
    pub fn with_precision(mut self, precision: Precision) -> Self {
        self.lowering.precision = precision;
        self
    }

    fn device(&self) -> &Device {
        &self.lowering.device
    }
}
