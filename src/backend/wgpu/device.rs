//! The adapter, the device and what of it is used.

use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{Adapter, DeviceType, Features, Limits};

use crate::{Error, Result};

/// Which adapter to open, and what of it to use. A test refuses what other adapters lack.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The adapter's place among those that will do, best first.
    pub index: usize,
    /// Whether an adapter that computes on the CPU will do.
    pub software: bool,
    pub subgroups: bool,
    /// Bytes of a weight that are bound at a time, at most.
    pub weight_slice: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { index: 0, software: true, subgroups: true, weight_slice: u64::MAX }
    }
}

/// An open device.
pub struct Device {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    /// Whether kernels may use subgroup operations.
    pub subgroups: bool,
    /// Bytes that one storage binding may have.
    pub max_binding: u64,
    /// Bytes of a weight that are bound at a time.
    pub weight_slice: u64,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    faults: Arc<Mutex<Faults>>,
}

/// What the device reported outside of any call.
#[derive(Default)]
struct Faults {
    error: Option<String>,
    lost: Option<String>,
}

/// Most workgroup memory that is asked for: with more, fewer workgroups fit side by side.
const WORKGROUP_MEMORY: u32 = 32 << 10;

/// Smallest subgroup that the kernels' reductions have room for.
const MIN_SUBGROUP: u32 = 4;

impl Device {
    /// Opens the best adapter that the options allow.
    pub async fn open(options: Options) -> Result<Self> {
        let adapter = adapter(options).await?;
        let info = adapter.get_info();
        let offered = adapter.features();
        let subgroups = options.subgroups
            && offered.contains(Features::SUBGROUP)
            && info.subgroup_min_size >= MIN_SUBGROUP;
        let mut features = Features::empty();
        features.set(Features::SUBGROUP, subgroups);
        let limits = limits(&adapter.limits());
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("fasq"),
            required_features: features,
            required_limits: limits.clone(),
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::backend("wgpu", format!("{} cannot be used: {e}", info.name)))?;

        let faults = Arc::new(Mutex::new(Faults::default()));
        let noted = faults.clone();
        device.on_uncaptured_error(Arc::new(move |error| {
            noted.lock().unwrap_or_else(PoisonError::into_inner).error.get_or_insert(error.to_string());
        }));
        let noted = faults.clone();
        device.set_device_lost_callback(move |_, message| {
            noted.lock().unwrap_or_else(PoisonError::into_inner).lost.get_or_insert(message);
        });
        let max_binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        Ok(Self {
            device,
            queue,
            info,
            subgroups,
            max_binding,
            weight_slice: max_binding.min(options.weight_slice),
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            faults,
        })
    }

    /// Fails with what the device reported since the last call. A lost device stays lost.
    pub fn check(&self) -> Result<()> {
        let mut faults = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lost) = &faults.lost {
            return Err(Error::backend("wgpu", format!("{} was lost: {lost}", self.name())));
        }
        match faults.error.take() {
            Some(error) => Err(Error::backend("wgpu", format!("{}: {error}", self.name()))),
            None => Ok(()),
        }
    }

    /// Invocations of a kernel's workgroup. A CPU runs few of them at a time, and changes between them at each barrier;
    /// but some kernels are made for 256.
    pub fn workgroup(&self, kernel: &str) -> usize {
        let small = !matches!(kernel, "attention" | "rope_attention" | "pq_matmul");
        if self.is_software() && small { 64 } else { 256 }
    }

    /// The adapter's name; browsers give none.
    pub fn name(&self) -> &str {
        if self.info.name.is_empty() { "the adapter" } else { &self.info.name }
    }

    /// Whether this adapter computes on the CPU.
    pub fn is_software(&self) -> bool {
        self.info.device_type == DeviceType::Cpu
    }
}

/// What the kernels need, and of sizes what the adapter offers.
fn limits(offered: &Limits) -> Limits {
    let least = Limits::downlevel_defaults();
    Limits {
        max_storage_buffers_per_shader_stage: 8,
        max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
        max_buffer_size: offered.max_buffer_size,
        max_compute_workgroup_storage_size: offered
            .max_compute_workgroup_storage_size
            .clamp(least.max_compute_workgroup_storage_size, WORKGROUP_MEMORY),
        ..least
    }
}

/// An adapter: discrete before integrated before virtual before software.
#[cfg(not(target_arch = "wasm32"))]
async fn adapter(options: Options) -> Result<Adapter> {
    let rank = |adapter: &Adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    let mut usable: Vec<Adapter> =
        adapters.into_iter().filter(|adapter| options.software || rank(adapter) < 4).collect();
    usable.sort_by_key(rank);
    match (options.index, usable.len()) {
        (_, 0) => {
            Err(Error::backend("wgpu", "no GPU adapter found (is a Vulkan, Metal or DX12 driver installed?)"))
        }
        (index, count) if index >= count => {
            Err(Error::mismatch("wgpu adapter", format!("below {count}, the adapters that there are"), index))
        }
        (index, _) => Ok(usable.swap_remove(index)),
    }
}

#[cfg(target_arch = "wasm32")]
async fn adapter(_: Options) -> Result<Adapter> {
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let options = wgpu::RequestAdapterOptions {
        power_preference: wgpu::PowerPreference::HighPerformance,
        ..Default::default()
    };
    instance
        .request_adapter(&options)
        .await
        .map_err(|e| Error::backend("wgpu", format!("this browser offers no WebGPU adapter: {e}")))
}
