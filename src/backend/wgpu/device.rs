//! The adapter, the device and what of it is used.

use std::sync::{Arc, Mutex, PoisonError};

use wgpu::{Adapter, DeviceType, Features, Limits};

use super::shader::{Shader, WORKGROUP};
use crate::{Error, Result};

/// What of an adapter is used.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// Whether kernels may use subgroup operations.
    pub subgroups: bool,
    /// Whether kernels may use matrix units: 16 x 16 x 16, f16 with sums in f32.
    pub tensor: bool,
    /// Whether many rows are multiplied by the paper's LUT GEMM where it fits. No adapter asks for it: it is kept for
    /// comparison.
    pub lut: bool,
    /// Bytes of a weight that are bound at a time.
    pub weight_slice: u64,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Bytes of the adapter's own memory, where it tells.
    pub memory: Option<u64>,
}

/// An open device.
pub struct Device {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    pub capabilities: Capabilities,
    /// Bytes that one storage binding may have.
    pub max_binding: u64,
    /// Invocations of a workgroup.
    max_invocations: usize,
    /// Workgroups along one dimension of a grid.
    pub max_grid: usize,
    faults: Arc<Mutex<Faults>>,
    /// One for each buffer of which a browser has not yet told whether it could be made.
    #[cfg(target_arch = "wasm32")]
    awaited: Mutex<Vec<futures_channel::oneshot::Receiver<()>>>,
}

/// What the device reported outside of any call.
#[derive(Default)]
struct Faults {
    error: Option<String>,
    lost: Option<String>,
}

/// Bytes of workgroup memory that are used at most: with more, fewer workgroups fit side by side.
const WORKGROUP_MEMORY: u32 = 48 << 10;

const TENSOR: Features = Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(Features::SHADER_F16);

/// Bytes of memory besides a model's and a session's: staging buffers, and what the driver takes.
pub const WORKING_MEMORY: u64 = 64 << 20;

/// Invocations of the smallest subgroup that the kernels' reductions take (subgroup.wgsl).
const MIN_SUBGROUP: u32 = 4;

impl Capabilities {
    /// All that the kernels can use of an adapter.
    pub fn of(adapter: &Adapter) -> Self {
        let (info, offered, limits) = (adapter.get_info(), adapter.features(), adapter.limits());
        let subgroups = offered.contains(Features::SUBGROUP) && info.subgroup_min_size >= MIN_SUBGROUP;
        let tensor = offered.contains(TENSOR)
            && subgroups
            && [info.subgroup_min_size, info.subgroup_max_size] == [32; 2]
            && adapter.cooperative_matrix_properties().iter().any(|p| {
                [p.m_size, p.n_size, p.k_size] == [16; 3]
                    && p.ab_type == wgpu::CooperativeScalarType::F16
                    && p.cr_type == wgpu::CooperativeScalarType::F32
            });
        Self {
            subgroups,
            tensor,
            lut: false,
            weight_slice: max_binding(&limits),
            workgroup_memory: limits.max_compute_workgroup_storage_size.min(WORKGROUP_MEMORY),
            memory: memory(adapter),
        }
    }
}

impl Device {
    /// Opens an adapter with these of its capabilities.
    pub async fn open(adapter: &Adapter, capabilities: Capabilities) -> Result<Self> {
        let info = adapter.get_info();
        let mut features = Features::empty();
        features.set(Features::SUBGROUP, capabilities.subgroups);
        features.set(TENSOR, capabilities.tensor);
        let limits = limits(&adapter.limits(), capabilities.workgroup_memory);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("fasq"),
            required_features: features,
            required_limits: limits.clone(),
            experimental_features: if capabilities.tensor {
                // SAFETY: cooperative matrices are what this is for; kernels that use them keep within their tiles.
                unsafe { wgpu::ExperimentalFeatures::enabled() }
            } else {
                wgpu::ExperimentalFeatures::disabled()
            },
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
        Ok(Self {
            device,
            queue,
            info,
            capabilities,
            max_binding: max_binding(&limits),
            max_invocations: limits.max_compute_invocations_per_workgroup as usize,
            max_grid: limits.max_compute_workgroups_per_dimension as usize,
            faults,
            #[cfg(target_arch = "wasm32")]
            awaited: Mutex::default(),
        })
    }

    /// A buffer. [`Device::settled`] fails where it could not be made.
    pub fn buffer(&self, descriptor: &wgpu::BufferDescriptor<'_>) -> wgpu::Buffer {
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(descriptor);
        let (memory, validation) = (memory.pop(), validation.pop());
        let faults = self.faults.clone();
        self.note(async move {
            if let Some(error) = memory.await.or(validation.await) {
                faults.lock().unwrap_or_else(PoisonError::into_inner).error.get_or_insert(error.to_string());
            }
        });
        buffer
    }

    /// Runs what notes an error: at once, because an adapter of this machine has told of it already.
    #[cfg(not(target_arch = "wasm32"))]
    fn note(&self, told: impl Future<Output = ()>) {
        pollster::block_on(told);
    }

    /// Runs what notes an error when the browser tells of it.
    #[cfg(target_arch = "wasm32")]
    fn note(&self, told: impl Future<Output = ()> + 'static) {
        let (done, awaited) = futures_channel::oneshot::channel();
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner).push(awaited);
        wasm_bindgen_futures::spawn_local(async move {
            told.await;
            // The receiver is gone only with the device.
            let _ = done.send(());
        });
    }

    /// [`Device::check`], with all buffers that were asked for. Errors that nothing waits for may come after results do.
    pub async fn settled(&self) -> Result<()> {
        #[cfg(target_arch = "wasm32")]
        {
            let awaited = std::mem::take(&mut *self.awaited.lock().unwrap_or_else(PoisonError::into_inner));
            for buffer in awaited {
                // A task that ended without a word has nothing to tell.
                let _ = buffer.await;
            }
        }
        self.check()
    }

    /// Fails if `bytes` exceed the adapter's memory; the error names both.
    pub fn check_memory(&self, bytes: u64) -> Result<()> {
        match self.capabilities.memory {
            Some(memory) if bytes > memory => {
                let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
                let (name, needed, memory) = (self.name(), gib(bytes), gib(memory));
                let why = format!("needs {needed:.2} GiB; {name} has {memory:.2} GiB of memory");
                Err(Error::backend("wgpu", why))
            }
            Some(_) | None => Ok(()),
        }
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

    /// Invocations of a kernel's workgroup.
    pub fn workgroup(&self, shader: Shader) -> usize {
        shader.workgroup(self.max_invocations)
    }

    /// The adapter's name; browsers give none.
    pub fn name(&self) -> &str {
        if self.info.name.is_empty() { "the adapter" } else { &self.info.name }
    }

    /// Whether the adapter computes on the CPU.
    pub fn is_software(&self) -> bool {
        self.info.device_type == DeviceType::Cpu
    }
}

/// What the kernels need, and of sizes what the adapter offers.
fn limits(offered: &Limits, workgroup_memory: u32) -> Limits {
    Limits {
        max_storage_buffers_per_shader_stage: 8,
        max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
        max_buffer_size: offered.max_buffer_size,
        // Less than WORKGROUP cannot be used: an adapter that has less says so when it is opened.
        max_compute_invocations_per_workgroup: offered
            .max_compute_invocations_per_workgroup
            .max(WORKGROUP as u32),
        max_compute_workgroup_size_x: offered.max_compute_workgroup_size_x.max(WORKGROUP as u32),
        max_compute_workgroup_storage_size: workgroup_memory,
        ..Limits::downlevel_defaults()
    }
}

/// Bytes that one storage binding may have.
fn max_binding(limits: &Limits) -> u64 {
    limits.max_storage_buffer_binding_size.min(limits.max_buffer_size)
}

/// Bytes of an adapter's own memory.
#[cfg(not(any(target_arch = "wasm32", target_vendor = "apple")))]
fn memory(adapter: &Adapter) -> Option<u64> {
    /// VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
    const DEVICE_LOCAL: u32 = 1;
    // SAFETY: the handles are only asked about the memory, while the adapter lives.
    let heaps = unsafe {
        let adapter = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = adapter.shared_instance().raw_instance();
        let memory = instance.get_physical_device_memory_properties(adapter.raw_physical_device());
        memory.memory_heaps.into_iter().take(memory.memory_heap_count as usize)
    };
    heaps.filter(|heap| heap.flags.as_raw() & DEVICE_LOCAL != 0).map(|heap| heap.size).max()
}

/// Metal shares the machine's memory, and a browser does not tell.
#[cfg(any(target_arch = "wasm32", target_vendor = "apple"))]
fn memory(_adapter: &Adapter) -> Option<u64> {
    None
}

/// The adapter of number `index` among those that can be used: discrete before integrated before virtual before
/// software, which is among them only if asked for.
#[cfg(not(target_arch = "wasm32"))]
pub async fn adapter(index: usize, software: bool) -> Result<Adapter> {
    let rank = |adapter: &Adapter| match adapter.get_info().device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    };
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor::new_without_display_handle());
    let mut adapters = instance.enumerate_adapters(wgpu::Backends::all()).await;
    adapters.retain(|adapter| software || adapter.get_info().device_type != DeviceType::Cpu);
    adapters.sort_by_key(rank);
    match adapters.len() {
        0 => {
            Err(Error::backend("wgpu", "no GPU adapter found (is a Vulkan, Metal or DX12 driver installed?)"))
        }
        count if index >= count => {
            Err(Error::mismatch("wgpu adapter", format!("below {count}, the adapters that there are"), index))
        }
        _ => Ok(adapters.swap_remove(index)),
    }
}

/// The adapter of a browser, which offers one and does not say what it is.
#[cfg(target_arch = "wasm32")]
pub async fn adapter(index: usize, _software: bool) -> Result<Adapter> {
    if index > 0 {
        return Err(Error::mismatch("wgpu adapter", "0, the one of a browser", index));
    }
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
