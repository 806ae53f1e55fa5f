//! Compiled pipelines and bind groups, each made once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::util::DeviceExt;

use super::Buffer;
use super::device::Device;
use super::shader::{Shader, bindings};
use crate::backend::Key;
use crate::ops::Operand;
use crate::{Error, Result};

/// Bind groups that are kept. A decoding session uses some hundreds, the same for every token; a prefill of another
/// length makes new ones.
const MAX_BIND_GROUPS: usize = 8192;

/// A kernel's `override` constants with their values.
pub type Constants<'a> = &'a [(&'static str, u32)];

/// What a kernel's bindings hold, in their order.
pub enum Arg<'a> {
    /// A parameter struct's words.
    Params(Vec<u32>),
    Buffer(&'a Buffer),
}

/// A kernel, specialised.
pub struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    /// Unlike any other pipeline's.
    id: usize,
}

/// One kernel, ready to be started.
pub struct Kernel {
    pub pipeline: Arc<Pipeline>,
    pub group: wgpu::BindGroup,
    pub grid: [u32; 2],
}

/// A list that was submitted, for the next time.
pub struct Kept {
    pub key: Key,
    pub kernels: Vec<Kernel>,
    /// The list encoded, once it has been used a second time.
    pub encoded: Option<wgpu::CommandBuffer>,
}

struct Module {
    module: wgpu::ShaderModule,
    layout: wgpu::BindGroupLayout,
    pipeline_layout: wgpu::PipelineLayout,
}

/// What a pipeline is made of.
type PipelineKey = (Shader, Vec<(&'static str, u32)>);

/// What a bind group is made of.
#[derive(PartialEq, Eq, Hash)]
struct BindKey {
    /// The pipeline's id.
    pipeline: usize,
    args: Vec<ArgKey>,
}

#[derive(PartialEq, Eq, Hash)]
enum ArgKey {
    Params(Vec<u32>),
    /// The storage's id, and first word and words of the part.
    Buffer(u64, Option<[u64; 2]>),
}

impl From<&Arg<'_>> for ArgKey {
    fn from(arg: &Arg<'_>) -> Self {
        match arg {
            Arg::Params(words) => Self::Params(words.clone()),
            Arg::Buffer(buffer) => Self::Buffer(buffer.id(), buffer.part),
        }
    }
}

/// All that was made so far.
#[derive(Default)]
pub struct Cache {
    modules: Mutex<HashMap<Shader, Arc<Module>>>,
    pipelines: Mutex<HashMap<PipelineKey, Arc<Pipeline>>>,
    bind_groups: Mutex<HashMap<BindKey, wgpu::BindGroup>>,
    /// Lists of kernels that were submitted, for the next time.
    pub kept: Mutex<Vec<Kept>>,
}

impl Cache {
    /// The kernel with these constants.
    pub fn pipeline(
        &self,
        device: &Device,
        shader: Shader,
        constants: Constants<'_>,
    ) -> Result<Arc<Pipeline>> {
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let id = pipelines.len();
        match pipelines.entry((shader, constants.to_vec())) {
            Entry::Occupied(entry) => Ok(entry.get().clone()),
            Entry::Vacant(entry) => {
                let made = self.compile(device, shader, constants, id)?;
                Ok(entry.insert(Arc::new(made)).clone())
            }
        }
    }

    fn compile(
        &self,
        device: &Device,
        shader: Shader,
        constants: Constants<'_>,
        id: usize,
    ) -> Result<Pipeline> {
        let module = {
            let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            modules.entry(shader).or_insert_with(|| Arc::new(Module::new(device, shader))).clone()
        };
        let constants: Vec<(&str, f64)> =
            constants.iter().map(|(name, value)| (*name, f64::from(*value))).collect();
        let pipeline = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(shader.name()),
            layout: Some(&module.pipeline_layout),
            module: &module.module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        device
            .check()
            .map_err(|e| Error::invalid(format!("kernel {} with {constants:?}", shader.name()), e))?;
        Ok(Pipeline { pipeline, layout: module.layout.clone(), id })
    }

    /// The bind group of these arguments: the one of the last call with the same.
    pub fn bind_group(&self, device: &Device, pipeline: &Pipeline, args: &[Arg<'_>]) -> wgpu::BindGroup {
        let key = BindKey { pipeline: pipeline.id, args: args.iter().map(ArgKey::from).collect() };
        let mut groups = self.bind_groups.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.len() >= MAX_BIND_GROUPS {
            groups.clear();
        }
        groups.entry(key).or_insert_with(|| bind(&device.device, pipeline, args)).clone()
    }

    /// Forgets the bind groups with the storage of this id, which would keep its memory, and all lists, which may have
    /// it.
    pub fn forget(&self, storage: u64) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut groups = self.bind_groups.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |arg: &ArgKey| matches!(arg, ArgKey::Buffer(id, _) if *id == storage);
        groups.retain(|key, _| !key.args.iter().any(has));
    }
}

fn bind(device: &wgpu::Device, pipeline: &Pipeline, args: &[Arg<'_>]) -> wgpu::BindGroup {
    /// What is bound: a buffer of this bind group's own, or one of the caller's.
    enum Bound<'a> {
        Params(wgpu::Buffer),
        Buffer(&'a Buffer),
    }
    let bound = args.iter().map(|arg| match arg {
        Arg::Params(words) => Bound::Params(device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
            label: Some("parameters"),
            contents: bytemuck::cast_slice(words),
            usage: wgpu::BufferUsages::UNIFORM,
        })),
        Arg::Buffer(buffer) => Bound::Buffer(buffer),
    });
    let bound: Vec<Bound<'_>> = bound.collect();
    let entries = (0..).zip(&bound).map(|(binding, bound)| {
        let resource = match bound {
            Bound::Params(uniform) => uniform.as_entire_binding(),
            Bound::Buffer(buffer) => wgpu::BindingResource::Buffer(buffer.binding()),
        };
        wgpu::BindGroupEntry { binding, resource }
    });
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.layout,
        entries: &entries.collect::<Vec<_>>(),
    })
}

impl Module {
    fn new(device: &Device, shader: Shader) -> Self {
        let name = shader.name();
        let source = shader.source(device.workgroup(shader), device.capabilities.subgroups);
        let entries: Vec<wgpu::BindGroupLayoutEntry> = (0..)
            .zip(bindings(&source))
            .map(|(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            })
            .collect();
        let device = &device.device;
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some(name),
            entries: &entries,
        });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let module = wgpu::ShaderModuleDescriptor {
            label: Some(name),
            source: wgpu::ShaderSource::Wgsl(source.into()),
        };
        // SAFETY: the kernels' loops end, and their indices follow from sizes that the host has checked; codes have
        // no more bits than the codebook has entries. Counted loops and clamped indices cost up to 8 times the speed.
        let module =
            unsafe { device.create_shader_module_trusted(module, wgpu::ShaderRuntimeChecks::unchecked()) };
        Self { module, layout, pipeline_layout }
    }
}
