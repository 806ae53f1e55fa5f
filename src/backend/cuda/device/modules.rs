//! Units compiled, loaded, and their kernels looked up.

use std::collections::BTreeSet;
use std::time::Instant;

use cudarc::driver::result::DriverError;
use cudarc::driver::{CudaFunction, sys};
use cudarc::nvrtc::Ptx;
use rayon::prelude::*;

use super::launch::{Commands, Kernel, Work};
use super::memory::{describe, driver};
use super::nvrtc::{self, Compiled};
use super::unit::{Function, Unit};
use super::{Device, error};
use crate::{Error, Result};

impl Device {
    /// The kernels of a list in its order, loaded: what is missing is compiled side by side.
    pub fn functions(&self, commands: &Commands) -> Result<Vec<CudaFunction>> {
        let kernels = || {
            commands.work.iter().filter_map(|work| match work {
                Work::Kernel(Kernel { function, .. }) => Some(function),
                Work::Gemm(_) => None,
            })
        };
        let known: Vec<_> = {
            let functions = self.functions.borrow();
            kernels().map(|function| functions.get(function).cloned()).collect()
        };
        if known.iter().any(Option::is_none) {
            let missing = kernels().zip(&known).filter(|(_, known)| known.is_none());
            self.compile(missing.map(|(function, _)| &function.unit).collect())?;
        }
        let loaded = |(function, known): (&Function, Option<CudaFunction>)| match known {
            Some(known) => Ok(known),
            None => self.function(function),
        };
        kernels().zip(known).map(loaded).collect()
    }

    /// Compiles and loads the units that are not yet.
    fn compile(&self, mut units: BTreeSet<&Unit>) -> Result<()> {
        units.retain(|unit| !self.modules.borrow().contains_key(unit));
        let start = Instant::now();
        let arch = self.capabilities.arch;
        let images: Vec<_> = units.par_iter().map(|unit| nvrtc::cached(unit, arch)).collect();
        let mut fresh = 0;
        for (unit, image) in units.into_iter().zip(images) {
            let image = image?;
            fresh += usize::from(image.fresh);
            self.load(unit, image)?;
        }
        if fresh > 0 {
            let (kernels, seconds) = (if fresh == 1 { "kernel" } else { "kernels" }, start.elapsed());
            log::info!("compiled {fresh} {kernels} in {:.1} s, once for this GPU", seconds.as_secs_f64());
        }
        Ok(())
    }

    fn load(&self, unit: &Unit, Compiled { bytes: mut image, .. }: Compiled) -> Result<()> {
        image.push(0); // PTX is a C string.
        let module =
            self.context.load_module(Ptx::from_binary(image)).map_err(|e| named(&unit.name(), &e))?;
        self.modules.borrow_mut().insert(unit.clone(), module);
        Ok(())
    }

    /// A kernel of a loaded unit, which may ask for all shared memory that there is.
    fn function(&self, function: &Function) -> Result<CudaFunction> {
        let Function { unit, name } = function;
        if let Some(loaded) = self.functions.borrow().get(function) {
            return Ok(loaded.clone());
        }
        let module = self.modules.borrow().get(unit).cloned();
        let module = module.ok_or_else(|| error(format!("kernel {name}: {} is not loaded", unit.name())))?;
        let loaded = module.load_function(name).map_err(|e| named(name, &e))?;
        let fixed = loaded.shared_size_bytes().map_err(driver)?;
        use sys::CUfunction_attribute as Attribute;
        let dynamic = self.capabilities.shared_limit as i32 - fixed;
        loaded
            .set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic)
            .map_err(|e| named(name, &e))?;
        self.functions.borrow_mut().insert(function.clone(), loaded.clone());
        Ok(loaded)
    }
}

fn named(kernel: &str, e: &DriverError) -> Error {
    error(format!("kernel {kernel}: {}", describe(e)))
}
