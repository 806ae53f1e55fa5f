//! The kernels' sources, and what NVRTC compiles of them.

use crate::ops;

/// A source file with its specialisation constants: what NVRTC compiles at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    /// The file, without its ending.
    pub file: &'static str,
    constants: [Option<(&'static str, u32)>; 32],
}

impl Unit {
    pub fn new(file: &'static str, constants: &[(&'static str, u32)]) -> Self {
        let mut all = [None; 32];
        for (slot, constant) in all.iter_mut().zip(constants) {
            *slot = Some(*constant);
        }
        Self { file, constants: all }
    }

    /// The same with `name` defined as well.
    pub fn with(mut self, name: &'static str, value: u32) -> Self {
        if let Some(slot) = self.constants.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some((name, value));
        }
        self
    }

    /// The same with the constants of `other` as well; none if a name has two values.
    pub fn joined(mut self, other: &Self) -> Option<Self> {
        for (name, value) in other.constants.iter().flatten() {
            match self.constant(name) {
                Some(ours) if ours == *value => {}
                Some(_) => return None,
                None => self = self.with(name, *value),
            }
        }
        Some(self)
    }

    pub fn constant(&self, name: &str) -> Option<u32> {
        self.constants.iter().flatten().find(|(ours, _)| *ours == name).map(|(_, value)| *value)
    }

    /// The file and its constants, for messages and file names.
    pub fn name(&self) -> String {
        let constants = self.constants.iter().flatten().map(|(name, value)| format!("-{name}{value}"));
        std::iter::once(self.file.to_owned()).chain(constants).collect::<String>().to_lowercase()
    }

    /// All that NVRTC sees.
    pub fn source(&self) -> String {
        let mut source = String::from("typedef unsigned int u32;\ntypedef float f32;\n");
        for (name, value) in self.constants.iter().flatten() {
            source += &format!("#define {name} {value}\n");
        }
        let given = |constant: &str, text: &'static str| self.constant(constant).map_or("", |_| text);
        let shared =
            [given("PQ_D", PQ_TILE), given("HEAD_DIM", ATTENTION_LANES), given("GROUP", ATTENTION_TILES)]
                .concat();
        if self.file == "step" {
            return step_source(self, &[&source, ops::CUDA, STEP_PRELUDE, PRELUDE, &shared].concat());
        }
        [&source, ops::CUDA, PRELUDE, &shared, text(self.file)].concat()
    }
}

/// The text of a source file.
pub fn text(file: &str) -> &'static str {
    match file {
        "prelude" => return PRELUDE,
        "pq_tile" => return PQ_TILE,
        _ => {}
    }
    SOURCES.iter().find(|(name, _)| *name == file).map_or("", |(_, text)| text)
}

const PRELUDE: &str = include_str!("../../../kernels/prelude.cuh");
const STEP_PRELUDE: &str = include_str!("../../../kernels/step.cuh");
const ATTENTION_LANES: &str = include_str!("../../../kernels/attention_lanes.cuh");
const ATTENTION_TILES: &str = include_str!("../../../kernels/attention_tiles.cuh");
const PQ_TILE: &str = include_str!("../../../kernels/pq_tile.cuh");

macro_rules! sources {
    ($($name:literal),* $(,)?) => {
        /// The kernels' files, by the names of [`ops::Kernel`].
        pub const SOURCES: &[(&str, &str)] =
            &[$(($name, include_str!(concat!("../../../kernels/", $name, ".cu")))),*];
    };
}

sources!(
    "argmax",
    "attention",
    "attention_split",
    "attention_step",
    "feedback",
    "causal_conv",
    "delta_chunks",
    "delta_rule",
    "dense_matmul",
    "dense_row",
    "embed",
    "gated_norm",
    "gather_rows",
    "hessian",
    "kmeans",
    "pack_rows",
    "pq_matmul",
    "pq_matmul_tables",
    "pq_matmul_tiles",
    "pq_matvec",
    "pq_matvec_subspace",
    "pq_row",
    "pq_rows",
    "quantize",
    "rms_norm",
    "rope_cache",
    "rotate",
    "step",
    "stream_read",
    "swiglu",
    "top_k",
);

/// The launches that can be phases of a step, by their entry's name, with the file that it is in and a constant without which the
/// file cannot be compiled.
pub const PHASES: &[(&str, &str, Option<&str>)] = &[
    ("pq_matvec_shared", "pq_row", Some("PQ_TOKENS")),
    ("dense_row", "dense_row", Some("DENSE_DTYPE")),
    ("rms_norm", "rms_norm", None),
    ("swiglu", "swiglu", None),
    ("gather_rows", "gather_rows", None),
    ("embed_pq", "embed", Some("PQ_D")),
    ("rotate", "rotate", None),
    ("attention_step", "attention_step", Some("HEAD_DIM")),
];

/// The source of a step: the files that its constants suffice for, each in a namespace, then step.cu.
fn step_source(unit: &Unit, head: &str) -> String {
    let mut source = String::new();
    for (i, (entry, _, _)) in PHASES.iter().enumerate() {
        source += &format!("#define PHASE_{entry} {i}\n");
    }
    source += head;
    let mut files: Vec<_> = PHASES.iter().map(|(_, file, needs)| (*file, *needs)).collect();
    files.dedup();
    for (file, needs) in files {
        if needs.is_none_or(|name| unit.constant(name).is_some()) {
            source += &format!("namespace {file} {{\n{}}}\n", text(file));
        }
    }
    source + text("step")
}
