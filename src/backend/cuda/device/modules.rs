//! Units compiled, loaded, and their kernels looked up.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::result::DriverError;
use cudarc::driver::{CudaModule, sys};
use cudarc::nvrtc::Ptx;
use rayon::prelude::*;

use super::memory::{describe, driver};
use super::nvrtc::{self, Compiled};
use super::unit::Unit;
use super::{Device, Function, error};
use crate::{Error, Result};

impl Device {
    /// The kernel `entry` of a unit, compiled and loaded on first use.
    pub fn function(&self, unit: &Unit, entry: &'static str) -> Result<Rc<Function>> {
        if let Some(function) = self.functions.borrow().get(&(unit.clone(), entry)) {
            return Ok(function.clone());
        }
        let module = self.module(unit)?;
        let function = module.load_function(entry).map_err(|e| named(entry, &e))?;
        let fixed = function.shared_size_bytes().map_err(driver)?;
        use sys::CUfunction_attribute as Attribute;
        let dynamic = self.capabilities.shared_limit as i32 - fixed;
        function
            .set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic)
            .map_err(|e| named(entry, &e))?;
        let function = Rc::new(Function { function, dynamic_limit: dynamic as u32 });
        self.functions.borrow_mut().insert((unit.clone(), entry), function.clone());
        Ok(function)
    }

    /// How many sources were compiled since the last call, and the seconds that it took.
    pub fn take_compiled(&self) -> (usize, f64) {
        self.compiled.take()
    }

    /// Compiles and loads units that are about to be used, side by side.
    pub fn prepare(&self, mut units: BTreeSet<Unit>) -> Result<()> {
        units.retain(|unit| !self.modules.borrow().contains_key(unit));
        let start = Instant::now();
        let arch = self.capabilities.arch;
        let images: Vec<_> = units.par_iter().map(|unit| nvrtc::cached(unit, arch)).collect();
        for (unit, image) in units.iter().zip(images) {
            self.load(unit, image?)?;
        }
        // Elapsed seconds, not those of all threads together.
        let (count, seconds) = self.compiled.get();
        self.compiled.set((count, seconds + start.elapsed().as_secs_f64()));
        Ok(())
    }

    fn module(&self, unit: &Unit) -> Result<Arc<CudaModule>> {
        if let Some(module) = self.modules.borrow().get(unit) {
            return Ok(module.clone());
        }
        let start = Instant::now();
        let module = self.load(unit, nvrtc::cached(unit, self.capabilities.arch)?)?;
        let (count, seconds) = self.compiled.get();
        self.compiled.set((count, seconds + start.elapsed().as_secs_f64()));
        Ok(module)
    }

    fn load(&self, unit: &Unit, Compiled { bytes: mut image, fresh }: Compiled) -> Result<Arc<CudaModule>> {
        let (count, seconds) = self.compiled.get();
        self.compiled.set((count + usize::from(fresh), seconds));
        image.push(0); // PTX is a C string.
        let module =
            self.context.load_module(Ptx::from_binary(image)).map_err(|e| named(&unit.name(), &e))?;
        self.modules.borrow_mut().insert(unit.clone(), module.clone());
        Ok(module)
    }
}

fn named(kernel: &str, e: &DriverError) -> Error {
    error(format!("kernel {kernel}: {}", describe(e)))
}
