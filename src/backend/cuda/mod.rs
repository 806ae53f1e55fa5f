//! The CUDA backend: NVIDIA GPUs from Ampere (RTX 3090) on.
//!
//! The driver, NVRTC and cuBLAS are loaded at run time; a program built with this backend runs without them and says
//! what is missing when the backend is asked for. Kernels (kernels/*.cu) are compiled for the device at first use and
//! cached on disk. Operations are recorded as a list of launches, which becomes a CUDA graph when it comes again; runs of
//! them around product-quantized matrices with few rows become phases of one launch (step.rs). What the RTX 3090 can
//! reach is in [`roofline`].

mod attention;
mod backend;
mod commands;
mod delta_rule;
mod device;
pub mod every;
mod fuse;
mod graphs;
mod hessian;
mod io;
mod join;
pub mod kernels;
mod linear;
mod matmul;
mod memory;
pub mod nvrtc;
mod pack;
mod quantize;
#[doc = include_str!("roofline.md")]
pub mod roofline {}
mod step;
mod transfer;
mod tune;
pub mod unit;
mod weight;

use std::fmt::Display;
use std::rc::Rc;

pub use commands::Commands;
pub use matmul::Way;
pub use weight::Weight;

use crate::ops;
use crate::{Error, Result};
use commands::Launch;
use device::{Device, Function};
use graphs::Graphs;
use kernels::Cache;
use memory::Memory;
use tune::Tuner;
use unit::Unit;

/// One CUDA device; clones are handles to the same.
#[derive(Clone)]
pub struct Cuda {
    device: Rc<Device>,
    graphs: Rc<Graphs>,
    precision: Precision,
    tuner: Rc<Tuner>,
    forced: Option<Way>,
}

/// What linear layers make of their input rows, attention of its cache, and the delta rule of many rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Inputs in f32 for up to 4 rows (decode), in f16 for more: tensor cores at their full rate. The cache in f16. The
    /// delta rule by chunks of rows, in pairs of bf16.
    Half,
    /// f32 always, 4 rows at a time: for comparisons.
    Single,
}

/// An array of 4-byte words on the device.
pub struct Buffer(Memory);

fn error(why: impl Display) -> Error {
    Error::backend("cuda", why)
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
        Ok(Self { device, graphs: Rc::default(), precision: Precision::Half, tuner, forced: None })
    }

    /// The same device with another precision.
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    /// The same device with one way to multiply several rows by product-quantized matrices, where that way serves.
    pub fn with_way(self, way: Way) -> Self {
        Self { forced: Some(way), ..self }
    }

    /// x and y may be the same.
    fn rotate_rows(&self, c: &mut Commands, x: &Memory, y: &Memory, p: ops::RotateParams) -> Result<()> {
        let (grid, threads, shared) = kernels::spans(p.rows, p.dim);
        c.launch(
            Launch::new(self.plain("rotate")?, grid, threads, shared)
                .memory(x)
                .memory(y)
                .params(&p.words())
                .params(&pack::NOWHERE),
        );
        Ok(())
    }

    fn cache(&self) -> Cache {
        match self.precision {
            Precision::Half => Cache::F16,
            Precision::Single => Cache::F32,
        }
    }

    fn cache_words(&self, elements: usize) -> usize {
        match self.cache() {
            Cache::F16 => elements.div_ceil(2),
            Cache::F32 => elements,
        }
    }

    /// Whether there are multiprocessors for two blocks of each of `rows`: then kernels share a row out.
    fn few(&self, rows: u32) -> bool {
        2 * rows <= self.device.sms
    }

    fn plain(&self, file: &'static str) -> Result<Rc<Function>> {
        self.device.function(kernels::plain(file), file)
    }

    fn entry(&self, unit: Unit, entry: &'static str) -> Result<Rc<Function>> {
        self.device.function(unit, entry)
    }
}
