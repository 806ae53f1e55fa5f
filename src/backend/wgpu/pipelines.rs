//! Kernels' sources, compiled pipelines and bind groups, each made once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use wgpu::util::DeviceExt;

use super::Buffer;
use super::device::{Device, UNIFORM};
use super::unroll::unroll;
use crate::backend::Key;
use crate::{Error, Result, ops};

/// Every kernel's name and the texts that it is made of, after the parameter structs and the prelude.
const KERNELS: [(&str, &[&str]); 23] = [
    ("embed", &[CODES, include_str!("../../../shaders/embed.wgsl")]),
    ("gather_rows", &[include_str!("../../../shaders/gather_rows.wgsl")]),
    ("rms_norm", &[include_str!("../../../shaders/rms_norm.wgsl")]),
    ("rotate", &[include_str!("../../../shaders/rotate.wgsl")]),
    ("dense_matmul", &[include_str!("../../../shaders/dense_matmul.wgsl")]),
    ("pq_matvec", &[SPANS, include_str!("../../../shaders/pq_matvec.wgsl")]),
    ("pq_matvec_rows", &[SPANS, include_str!("../../../shaders/rows_storage.wgsl"), ROWS]),
    ("pq_matvec_rows_uniform", &[SPANS, include_str!("../../../shaders/rows_uniform.wgsl"), ROWS]),
    ("pq_matvec_table", &[PQ_LINEAR, include_str!("../../../shaders/pq_matvec_table.wgsl")]),
    ("pq_matmul", &[PQ_LINEAR, CODES, include_str!("../../../shaders/pq_matmul.wgsl")]),
    ("pq_matmul_lut", &[PQ_LINEAR, CODES, include_str!("../../../shaders/pq_matmul_lut.wgsl")]),
    ("pq_matmul_tensor", &[include_str!("../../../shaders/pq_matmul_tensor.wgsl")]),
    ("rope_cache", &[ROPE, include_str!("../../../shaders/rope_cache.wgsl")]),
    ("attention", &[ONE, ATTEND, ATTENTION]),
    ("attention_wide", &[FOUR, ATTEND, ATTENTION]),
    ("rope_attention", &[ONE, ROPE, ATTEND, ROPE_ATTENTION]),
    ("rope_attention_wide", &[FOUR, ROPE, ATTEND, ROPE_ATTENTION]),
    ("swiglu", &[include_str!("../../../shaders/swiglu.wgsl")]),
    ("causal_conv", &[include_str!("../../../shaders/causal_conv.wgsl")]),
    ("delta_rule", &[include_str!("../../../shaders/delta_rule.wgsl")]),
    ("delta_step", &[include_str!("../../../shaders/delta_step.wgsl")]),
    ("argmax", &[include_str!("../../../shaders/argmax.wgsl")]),
    ("gated_norm", &[include_str!("../../../shaders/gated_norm.wgsl")]),
];
const PRELUDE: &str = include_str!("../../../shaders/prelude.wgsl");
const CODES: &str = include_str!("../../../shaders/codes.wgsl");
const PQ_LINEAR: &str = include_str!("../../../shaders/pq_linear.wgsl");
const ROWS: &str = include_str!("../../../shaders/pq_matvec_rows.wgsl");
const SPANS: &str = include_str!("../../../shaders/spans.wgsl");
const ROPE: &str = include_str!("../../../shaders/rope.wgsl");
const ATTEND: &str = include_str!("../../../shaders/attend.wgsl");
const ATTENTION: &str = include_str!("../../../shaders/attention.wgsl");
const ROPE_ATTENTION: &str = include_str!("../../../shaders/rope_attention.wgsl");
const ONE: &str = include_str!("../../../shaders/piece1.wgsl");
const FOUR: &str = include_str!("../../../shaders/piece4.wgsl");
const SUBGROUP: &str = include_str!("../../../shaders/subgroup.wgsl");
const SHARED: &str = include_str!("../../../shaders/shared.wgsl");

/// Bind groups that are kept. A decoding session uses some hundreds, the same for every token; a prefill of another
/// length makes new ones.
const MAX_BIND_GROUPS: usize = 8192;

/// Values of a kernel's `override` constants.
pub type Constants<'a> = &'a [(&'static str, u32)];

/// What a kernel's bindings hold, in their order.
pub enum Arg<'a> {
    /// A parameter struct's words.
    Params(Vec<u32>),
    Buffer(&'a Buffer),
    /// The first [`UNIFORM`] bytes of a buffer.
    Uniform(&'a Buffer),
}

/// A kernel, specialised.
pub struct Pipeline {
    pub pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    /// Unlike any other pipeline's.
    id: u64,
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

/// A pipeline's identity, then a tag and the words or identity of each argument.
type BindKey = Vec<u64>;

/// By kernel name and specialisation constants.
type Pipelines = HashMap<(&'static str, Vec<u32>), Arc<Pipeline>>;

/// All that was made so far.
#[derive(Default)]
pub struct Cache {
    modules: Mutex<HashMap<&'static str, Arc<Module>>>,
    pipelines: Mutex<Pipelines>,
    bind_groups: Mutex<HashMap<BindKey, wgpu::BindGroup>>,
    /// Lists of kernels that were submitted, for the next time.
    pub kept: Mutex<Vec<Kept>>,
}

impl Cache {
    /// The kernel with these constants.
    pub fn pipeline(
        &self,
        device: &Device,
        name: &'static str,
        constants: Constants<'_>,
    ) -> Result<Arc<Pipeline>> {
        let values = constants.iter().map(|(_, value)| *value).collect();
        let mut pipelines = self.pipelines.lock().unwrap_or_else(PoisonError::into_inner);
        let id = pipelines.len() as u64;
        match pipelines.entry((name, values)) {
            std::collections::hash_map::Entry::Occupied(entry) => Ok(entry.get().clone()),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let made = self.compile(device, name, constants, id)?;
                Ok(entry.insert(Arc::new(made)).clone())
            }
        }
    }

    fn compile(
        &self,
        device: &Device,
        name: &'static str,
        constants: Constants<'_>,
        id: u64,
    ) -> Result<Pipeline> {
        let module = {
            let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
            modules.entry(name).or_insert_with(|| Arc::new(Module::new(device, name))).clone()
        };
        let constants: Vec<(&str, f64)> =
            constants.iter().map(|(name, value)| (*name, f64::from(*value))).collect();
        let pipeline = device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(name),
            layout: Some(&module.pipeline_layout),
            module: &module.module,
            entry_point: Some("main"),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &constants,
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        device.check().map_err(|e| Error::invalid(format!("kernel {name} with {constants:?}"), e))?;
        Ok(Pipeline { pipeline, layout: module.layout.clone(), id })
    }

    /// The bind group of these arguments: the one of the last call with the same.
    pub fn bind_group(&self, device: &Device, pipeline: &Pipeline, args: &[Arg<'_>]) -> wgpu::BindGroup {
        let mut key = vec![pipeline.id];
        for arg in args {
            match arg {
                Arg::Params(words) => {
                    key.push(words.len() as u64);
                    key.extend(words.iter().map(|w| u64::from(*w)));
                }
                Arg::Buffer(buffer) | Arg::Uniform(buffer) => key.extend([buffer.id(), buffer.start()]),
            }
        }
        let mut groups = self.bind_groups.lock().unwrap_or_else(PoisonError::into_inner);
        if groups.len() >= MAX_BIND_GROUPS {
            groups.clear();
        }
        groups.entry(key).or_insert_with(|| bind(&device.device, pipeline, args)).clone()
    }

    /// Forgets the bind groups with this buffer, which would keep its memory, and all lists, which may have it.
    pub fn forget(&self, buffer: u64) {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut groups = self.bind_groups.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|key, _| !key.contains(&buffer));
    }
}

fn bind(device: &wgpu::Device, pipeline: &Pipeline, args: &[Arg<'_>]) -> wgpu::BindGroup {
    let uniforms: Vec<Option<wgpu::Buffer>> = args
        .iter()
        .map(|arg| match arg {
            Arg::Params(words) => Some(device.create_buffer_init(&wgpu::util::BufferInitDescriptor {
                label: Some("parameters"),
                contents: bytemuck::cast_slice(words),
                usage: wgpu::BufferUsages::UNIFORM,
            })),
            Arg::Buffer(_) | Arg::Uniform(_) => None,
        })
        .collect();
    let entries: Vec<wgpu::BindGroupEntry<'_>> = (0..)
        .zip(args.iter().zip(&uniforms))
        .map(|(binding, (arg, uniform))| {
            let resource = match (arg, uniform) {
                (Arg::Buffer(buffer), _) => wgpu::BindingResource::Buffer(buffer.binding()),
                (Arg::Uniform(buffer), _) => {
                    let size = wgpu::BufferSize::new(UNIFORM);
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { size, ..buffer.binding() })
                }
                (Arg::Params(_), Some(uniform)) => uniform.as_entire_binding(),
                (Arg::Params(_), None) => unreachable!("every Params has its uniform above"),
            };
            wgpu::BindGroupEntry { binding, resource }
        })
        .collect();
    device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: None,
        layout: &pipeline.layout,
        entries: &entries,
    })
}

impl Module {
    fn new(device: &Device, name: &'static str) -> Self {
        let source = source(name, device.workgroup(name), device.subgroups, !device.is_software());
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

/// The whole text of a kernel.
fn source(name: &str, workgroup: usize, subgroups: bool, unrolled: bool) -> String {
    let own = KERNELS.iter().find(|(kernel, _)| *kernel == name).map_or(&[][..], |(_, texts)| texts);
    let reduction = if subgroups { SUBGROUP } else { SHARED };
    let workgroup = format!("const WORKGROUP = {workgroup}u;\n");
    let enable =
        if name.ends_with("_tensor") { "enable f16;\nenable wgpu_cooperative_matrix;\n" } else { "" };
    let text = [&[enable, ops::WGSL, &workgroup, PRELUDE, reduction], own].concat().concat();
    if unrolled { unroll(&text) } else { text }
}

/// The kinds of a kernel's bindings, which stand in order, each on a line of its own.
fn bindings(source: &str) -> impl Iterator<Item = wgpu::BufferBindingType> + '_ {
    source.lines().filter(|line| line.starts_with("@group(0) @binding(")).map(|line| {
        if line.contains("var<uniform>") {
            wgpu::BufferBindingType::Uniform
        } else {
            wgpu::BufferBindingType::Storage { read_only: line.contains("var<storage, read>") }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_a_source_within_the_limits() {
        for kernel in ops::Kernel::ALL {
            assert!(KERNELS.iter().any(|(name, _)| *name == kernel.0), "{} is missing", kernel.0);
        }
        for (name, _) in KERNELS {
            let source = source(name, 256, true, true);
            let storage =
                |ty: &wgpu::BufferBindingType| matches!(ty, wgpu::BufferBindingType::Storage { .. });
            let buffers = bindings(&source).filter(storage).count();
            assert!((1..=8).contains(&buffers), "{name} binds {buffers} storage buffers");
        }
    }

    /// Also the kernels that no software adapter compiles.
    #[test]
    fn every_kernel_is_valid() {
        use wgpu::naga::{front::wgsl, valid};
        for (name, _) in KERNELS {
            let source = source(name, 256, true, true);
            let module =
                wgsl::parse_str(&source).unwrap_or_else(|e| panic!("{name}: {}", e.emit_to_string(&source)));
            let mut validator =
                valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all());
            if let Err(e) = validator.validate(&module) {
                panic!("{name}: {}", e.emit_to_string(&source));
            }
        }
    }
}
