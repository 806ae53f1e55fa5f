//! Device memory, and the driver's errors.

use std::sync::Arc;

use cudarc::driver::result::DriverError;
use cudarc::driver::{CudaSlice, DevicePtr};

use super::error;
use crate::Error;

/// Device memory in 4-byte words, shared by what uses it and freed in stream order.
pub type Memory = Arc<CudaSlice<u32>>;

/// Where `memory` is on the device. All work is on one stream, so there is nothing to wait for.
pub fn address(memory: &Memory) -> u64 {
    memory.device_ptr(memory.stream()).0
}

/// What the driver says of an error.
pub fn describe(e: &DriverError) -> String {
    e.error_string().map_or_else(|_| format!("{e:?}"), |text| text.to_string_lossy().into_owned())
}

/// A driver's error as ours.
pub fn driver(e: DriverError) -> Error {
    error(describe(&e))
}
