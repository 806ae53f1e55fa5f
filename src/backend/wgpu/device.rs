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
    /// Whether such an adapter runs the kernels that GPUs do, instead of those that suit a CPU.
    pub gpu_kernels: bool,
    pub subgroups: bool,
    /// How many rows are multiplied by a product-quantized weight, where that takes it; None: the fastest way.
    pub matmul: Option<Matmul>,
    /// Bytes of a weight that are bound at a time, at most.
    pub weight_slice: u64,
    /// Bytes of workgroup memory, at most.
    pub workgroup_memory: u32,
    /// Bytes of memory for a model, at most.
    pub memory: u64,
}

/// How many rows are multiplied by a product-quantized weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matmul {
    /// Products of x with all centroids are looked up.
    Lut,
    /// Tiles of the weight are decoded.
    Tile,
    /// Tiles are decoded and multiplied on matrix units, in f16.
    Tensor,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            index: 0,
            software: true,
            gpu_kernels: false,
            subgroups: true,
            matmul: None,
            weight_slice: u64::MAX,
            workgroup_memory: WORKGROUP_MEMORY,
            memory: u64::MAX,
        }
    }
}

/// An open device.
pub struct Device {
    pub device: wgpu::Device,
    pub queue: wgpu::Queue,
    pub info: wgpu::AdapterInfo,
    software: bool,
    /// Whether that adapter runs eight invocations abreast or more, as lavapipe does, which suits
    /// pq_matvec_rows.wgsl: on SwiftShader, with four, it takes twice the time of pq_matvec.wgsl.
    pub rows: bool,
    /// Whether kernels may use subgroup operations.
    pub subgroups: bool,
    /// Whether kernels may use matrix units: 16 x 16 x 16, f16 with sums in f32.
    pub tensor: bool,
    /// See [`Options::matmul`].
    pub matmul: Option<Matmul>,
    /// Bytes that one storage binding may have.
    pub max_binding: u64,
    /// Bytes of a weight that are bound at a time.
    pub weight_slice: u64,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Bytes of its own memory, where the adapter tells.
    memory: Option<u64>,
    /// Invocations of a workgroup.
    max_invocations: usize,
    /// Whether a kernel may have uniforms of [`UNIFORM`] bytes.
    pub uniforms: bool,
    /// Workgroups along one dimension of a grid.
    pub max_grid: usize,
    faults: Arc<Mutex<Faults>>,
}

/// What the device reported outside of any call.
#[derive(Default)]
struct Faults {
    error: Option<String>,
    lost: Option<String>,
}

/// Most workgroup memory that is asked for: with more, fewer workgroups fit side by side.
const WORKGROUP_MEMORY: u32 = 48 << 10;

/// Bytes of the uniforms in rows_uniform.wgsl.
pub const UNIFORM: u64 = 64 << 10;

const TENSOR: Features = Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(Features::SHADER_F16);

/// Memory beside the weights: activations, a short context, what the driver takes.
const WORKING_MEMORY: u64 = 64 << 20;

/// Smallest subgroup of adapters that multiply row by row.
const ROWS_SUBGROUP: u32 = 8;
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
        let tensor = offered.contains(TENSOR)
            && options.matmul.is_none_or(|way| way == Matmul::Tensor)
            && subgroups
            && info.subgroup_min_size == 32
            && info.subgroup_max_size == 32
            && adapter.cooperative_matrix_properties().iter().any(|p| {
                [p.m_size, p.n_size, p.k_size] == [16; 3]
                    && p.ab_type == wgpu::CooperativeScalarType::F16
                    && p.cr_type == wgpu::CooperativeScalarType::F32
            });
        if tensor {
            features |= TENSOR;
        }
        let limits = limits(&adapter.limits(), options.workgroup_memory);
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("fasq"),
            required_features: features,
            required_limits: limits.clone(),
            // SAFETY: cooperative matrices are what this is for; kernels that use them keep within their tiles.
            experimental_features: if tensor {
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
        let software = info.device_type == DeviceType::Cpu && !options.gpu_kernels;
        let max_binding = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        Ok(Self {
            device,
            queue,
            software,
            rows: software && info.subgroup_min_size >= ROWS_SUBGROUP,
            info,
            subgroups,
            tensor,
            matmul: options.matmul,
            max_binding,
            weight_slice: max_binding.min(options.weight_slice),
            memory: memory(&adapter)
                .or((options.memory < u64::MAX).then_some(options.memory))
                .map(|n| n.min(options.memory)),
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup as usize,
            uniforms: limits.max_uniform_buffer_binding_size == UNIFORM,
            max_grid: limits.max_compute_workgroups_per_dimension as usize,
            faults,
        })
    }

    /// An error where weights of `bytes` and what goes with them are more than the adapter's memory.
    pub fn check_room(&self, bytes: u64) -> Result<()> {
        let needed = bytes.saturating_add(WORKING_MEMORY);
        match self.memory {
            Some(memory) if needed > memory => {
                let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
                let (name, needed, memory) = (self.name(), gib(needed), gib(memory));
                let why = format!("{name} has {memory:.2} GiB of memory, the model takes {needed:.2} GiB");
                Err(Error::backend("wgpu", why))
            }
            _ => Ok(()),
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

    /// Invocations of a kernel's workgroup. A CPU runs few of them at a time, and changes between them at each barrier;
    /// but some kernels are made for 256.
    pub fn workgroup(&self, kernel: &str) -> usize {
        if (kernel.ends_with("attention_wide") || kernel == "delta_step") && !self.is_software() {
            return self.max_invocations.min(512);
        }
        let small = !matches!(
            kernel,
            "attention"
                | "rope_attention"
                | "attention_wide"
                | "rope_attention_wide"
                | "pq_matvec_table"
                | "pq_matmul"
                | "pq_matmul_tensor"
        );
        match (self.is_software() && small, kernel) {
            (true, "pq_matvec_rows" | "pq_matvec_rows_uniform") => 32,
            (true, _) => 64,
            _ => 256,
        }
    }

    /// The adapter's name; browsers give none.
    pub fn name(&self) -> &str {
        if self.info.name.is_empty() { "the adapter" } else { &self.info.name }
    }

    /// Whether the kernels are those for an adapter that computes on the CPU.
    pub fn is_software(&self) -> bool {
        self.software
    }
}

/// What the kernels need, and of sizes what the adapter offers.
fn limits(offered: &Limits, workgroup_memory: u32) -> Limits {
    let least = Limits::downlevel_defaults();
    Limits {
        max_storage_buffers_per_shader_stage: 8,
        max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
        max_uniform_buffer_binding_size: offered.max_uniform_buffer_binding_size.min(UNIFORM),
        max_buffer_size: offered.max_buffer_size,
        max_compute_invocations_per_workgroup: offered.max_compute_invocations_per_workgroup.min(512),
        max_compute_workgroup_size_x: offered.max_compute_workgroup_size_x.min(512),
        max_compute_workgroup_storage_size: offered.max_compute_workgroup_storage_size.min(workgroup_memory),
        ..least
    }
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
