//! The kernels' sources, and what NVRTC compiles of them.

use std::collections::BTreeMap;

use super::abi;
use crate::ops;

/// Declares [`Source`] over the files `kernels/NAME.cu`.
macro_rules! sources {
    ($($source:ident $name:literal $(in $folder:literal)?),* $(,)?) => {
        /// A file of kernels.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Source {
            $($source,)*
        }

        impl Source {
            pub const ALL: &[Self] = &[$(Self::$source),*];

            /// The file's name without its ending.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$source => $name,)*
                }
            }

            pub fn text(self) -> &'static str {
                match self {
                    $(Self::$source => include_str!(concat!("../../../../kernels/", $($folder,)? $name, ".cu")),)*
                }
            }
        }
    };
}

sources!(
    Argmax "argmax",
    Attention "attention",
    AttentionSplit "attention_split",
    AttentionStep "attention_step",
    CausalConv "causal_conv",
    DeltaChunks "delta_chunks",
    DeltaRule "delta_rule",
    DenseMatmul "dense_matmul",
    DenseRow "dense_row",
    Embed "embed",
    Feedback "feedback",
    GatedNorm "gated_norm",
    GatherRows "gather_rows",
    Hessian "hessian",
    Kmeans "kmeans",
    PackRows "pack_rows",
    Persistent "persistent",
    PqMatmul "pq_matmul",
    PqMatmulTables "pq_matmul_tables" in "paper/",
    PqMatmulTiles "pq_matmul_tiles",
    PqMatvec "pq_matvec",
    PqMatvecSubspace "pq_matvec_subspace",
    PqRow "pq_row",
    PqRows "pq_rows",
    PqSumParts "pq_sum_parts",
    PqTiles "pq_tiles",
    Quantize "quantize",
    RmsNorm "rms_norm",
    RopeCache "rope_cache",
    QkNorm "qk_norm",
    Rotate "rotate",
    StreamRead "stream_read",
    Glu "glu",
    TopK "top_k",
);

impl Source {
    /// The file without constants.
    pub fn unit(self) -> Unit {
        Unit::new(self, &[])
    }
}

/// Text that every source starts with.
pub const PRELUDE: &str =
    concat!(include_str!("../../../../kernels/prelude.cuh"), include_str!("../../../../kernels/rows.cuh"));
/// Text before the sources of a persistent kernel.
const PERSISTENT_PRELUDE: &str = include_str!("../../../../kernels/persistent.cuh");
const ATTENTION_LANES: &str = include_str!("../../../../kernels/attention_lanes.cuh");
const ATTENTION_TILES: &str = include_str!("../../../../kernels/attention_tiles.cuh");
/// Text before the sources that read codes.
pub const PQ_TILE: &str = include_str!("../../../../kernels/pq_tile.cuh");
/// What the kernels of one row of x share.
const PQ_ONE_ROW: &str = include_str!("../../../../kernels/pq_one_row.cuh");

/// Text that a source needs where a constant is given.
const SHARED: &[(&str, &str)] =
    &[("PQ_D", PQ_TILE), ("PQ_BATCH", PQ_ONE_ROW), ("HEAD_DIM", ATTENTION_LANES), ("GROUP", ATTENTION_TILES)];

/// A kernel of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Function {
    pub unit: Unit,
    pub name: &'static str,
}

/// A source with its specialisation constants: what NVRTC compiles at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Unit {
    source: Source,
    /// Sources whose kernels are functions of this one's kernel, each in a namespace of its name.
    functions: Vec<Source>,
    constants: BTreeMap<&'static str, u32>,
}

impl Unit {
    pub fn new(source: Source, constants: &[(&'static str, u32)]) -> Self {
        Self { source, functions: Vec::new(), constants: constants.iter().copied().collect() }
    }

    /// The same with `name` defined as well.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: u32) -> Self {
        self.constants.insert(name, value);
        self
    }

    /// The same with the kernels of these sources as functions.
    #[must_use]
    pub fn with_functions(self, functions: Vec<Source>) -> Self {
        Self { functions, ..self }
    }

    pub fn source(&self) -> Source {
        self.source
    }

    /// Its kernel of this name.
    pub fn function(&self, name: &'static str) -> Function {
        Function { unit: self.clone(), name }
    }

    pub fn constants(&self) -> &BTreeMap<&'static str, u32> {
        &self.constants
    }

    pub fn constant(&self, name: &str) -> Option<u32> {
        self.constants.get(name).copied()
    }

    /// The file and its constants, for messages and file names.
    pub fn name(&self) -> String {
        let constants = self.constants.iter().map(|(name, value)| format!("-{name}{value}"));
        std::iter::once(self.source.name().to_owned()).chain(constants).collect::<String>().to_lowercase()
    }

    /// All that NVRTC sees.
    pub fn text(&self) -> String {
        let mut text = String::from("typedef unsigned int u32;\ntypedef float f32;\n");
        text += "typedef unsigned short u16;\ntypedef unsigned long long u64;\n";
        for (name, value) in &self.constants {
            text += &format!("#define {name} {value}\n");
        }
        text += &[ops::CUDA, abi::CUDA_CONSTANTS, abi::CUDA].concat();
        if !self.functions.is_empty() {
            text += PERSISTENT_PRELUDE;
        }
        text += PRELUDE;
        for (constant, shared) in SHARED {
            if self.constants.contains_key(constant) {
                text += shared;
            }
        }
        for function in &self.functions {
            text += &format!("namespace {} {{\n{}}}\n", function.name(), function.text());
        }
        text + self.source.text()
    }
}
