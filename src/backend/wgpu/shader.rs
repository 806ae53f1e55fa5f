//! [`Shader`]: the WGSL kernels and what their sources are made of.

use super::limits;
use super::unroll::unroll;
use crate::ops;

/// Invocations of a workgroup.
pub const WORKGROUP: usize = 256;
/// Invocations of a workgroup of the kernels that have few of them, where the adapter has so many.
const WIDE_WORKGROUP: usize = 512;

/// Declares the kernels: each one's variant, its name, and the files that follow the prelude in its source.
macro_rules! shaders {
    ($($variant:ident $name:literal: $($file:literal),+;)*) => {
        /// A WGSL kernel.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Shader { $($variant),* }

        impl Shader {
            #[cfg(test)]
            const ALL: &[Self] = &[$(Self::$variant),*];

            /// The name in labels and errors.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            fn body(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($(include_str!(concat!("../../../shaders/", $file, ".wgsl"))),+)),*
                }
            }
        }
    };
}

shaders! {
    Embed "embed": "codes", "embed";
    GatherRows "gather_rows": "gather_rows";
    RmsNorm "rms_norm": "rms_norm";
    QkNorm "qk_norm": "qk_norm";
    Rotate "rotate": "rotate";
    DenseMatmul "dense_matmul": "dense_matmul";
    PqMatvec "pq_matvec": "spans", "pq_matvec";
    PqMatvecTable "pq_matvec_table": "pq_linear", "pq_matvec_table";
    PqMatmul "pq_matmul": "pq_linear", "codes", "pq_matmul";
    PqMatmulTensor "pq_matmul_tensor": "pq_matmul_tensor";
    PqMatmulLut "pq_matmul_lut": "pq_linear", "codes", "paper/pq_matmul_lut";
    RopeCache "rope_cache": "rope", "cache", "rope_cache";
    Attention "attention": "piece1", "cache", "attend", "attention";
    AttentionWide "attention_wide": "piece4", "cache", "attend", "attention";
    RopeAttention "rope_attention": "piece1", "rope", "cache", "attend", "rope_attention";
    RopeAttentionWide "rope_attention_wide": "piece4", "rope", "cache", "attend", "rope_attention";
    Glu "glu": "glu";
    CausalConv "causal_conv": "causal_conv";
    DeltaRule "delta_rule": "delta_rule";
    DeltaStep "delta_step": "delta_step";
    GatedNorm "gated_norm": "gated_norm";
    Argmax "argmax": "argmax";
}

impl Shader {
    /// Invocations of a workgroup, on an adapter that allows `most`.
    pub fn workgroup(self, most: usize) -> usize {
        match self {
            Self::AttentionWide | Self::RopeAttentionWide | Self::DeltaStep if most >= WIDE_WORKGROUP => {
                WIDE_WORKGROUP
            }
            _ => WORKGROUP,
        }
    }

    /// The whole WGSL source.
    pub fn source(self, workgroup: usize, subgroups: bool) -> String {
        let enable = match self {
            Self::PqMatmulTensor => "enable f16;\nenable wgpu_cooperative_matrix;\n",
            _ => "",
        };
        let workgroup = format!("const WORKGROUP = {workgroup}u;\n");
        let prelude = include_str!("../../../shaders/prelude.wgsl");
        let reduction = if subgroups {
            include_str!("../../../shaders/subgroup.wgsl")
        } else {
            include_str!("../../../shaders/shared.wgsl")
        };
        unroll(&[enable, ops::WGSL, limits::WGSL, &workgroup, prelude, reduction, self.body()].concat())
    }
}

/// The kinds of a source's bindings, which stand in order, each on a line of its own.
pub fn bindings(source: &str) -> impl Iterator<Item = wgpu::BufferBindingType> + '_ {
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
    fn every_operation_has_a_kernel() {
        for kernel in ops::kernels() {
            assert!(Shader::ALL.iter().any(|shader| shader.name() == kernel), "{kernel} is missing");
        }
    }

    #[test]
    fn every_kernel_binds_what_every_adapter_allows() {
        for shader in Shader::ALL {
            let source = shader.source(WORKGROUP, true);
            let storage =
                |ty: &wgpu::BufferBindingType| matches!(ty, wgpu::BufferBindingType::Storage { .. });
            let buffers = bindings(&source).filter(storage).count();
            assert!((1..=8).contains(&buffers), "{shader:?} binds {buffers} storage buffers");
            for (binding, line) in source.lines().filter(|line| line.starts_with("@group(0)")).enumerate() {
                assert!(line.contains(&format!("@binding({binding})")), "{shader:?}: {line}");
            }
        }
    }

    #[test]
    fn every_marked_loop_is_unrolled() {
        for shader in Shader::ALL {
            assert!(!shader.source(WORKGROUP, true).contains("// unroll"), "{shader:?}");
        }
    }

    /// Also the kernels that no software adapter compiles.
    #[test]
    fn every_kernel_is_valid() {
        use wgpu::naga::{front::wgsl, valid};
        for shader in Shader::ALL {
            for subgroups in [true, false] {
                if *shader == Shader::PqMatmulTensor && !subgroups {
                    continue;
                }
                let source = shader.source(WORKGROUP, subgroups);
                let module = wgsl::parse_str(&source)
                    .unwrap_or_else(|e| panic!("{shader:?}: {}", e.emit_to_string(&source)));
                let mut validator =
                    valid::Validator::new(valid::ValidationFlags::all(), valid::Capabilities::all());
                if let Err(e) = validator.validate(&module) {
                    panic!("{shader:?}: {}", e.emit_to_string(&source));
                }
            }
        }
    }
}
