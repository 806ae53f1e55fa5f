//! The .fasq file: everything that a run needs, as a valid safetensors file. docs/format.md has the compatibility rules.
//!
//! # Bytes
//!
//! ```text
//! 8 bytes    u64, little-endian: length of the header, a multiple of 8
//! header     JSON, padded with spaces: name -> { dtype, shape, data_offsets }, and __metadata__
//! data       the tensors without gaps, in the order of their offsets: dtypes by falling alignment (so that every
//!            dense tensor, codebook and scale is aligned), then names
//! ```
//!
//! A quantized matrix `NAME` `[rows, cols]` (the checkpoint's full name, such as `model.layers.0.mlp.up_proj.weight`)
//! with a [`PqSpec`] of d and K is up to three tensors:
//!
//! | tensor | dtype, shape | |
//! |---|---|---|
//! | `NAME.codes` | U8 `[rows, row_bytes]` | per row ceil(cols / d) codes of log2 K bits, lowest bits first, padded with zero bits to whole bytes |
//! | `NAME.codebooks` | F16 `[codebooks, K, d]` | not with `@universal`; subspace j (columns j d to j d + d) uses codebook j / group |
//! | `NAME.scales` | F16 `[rows]` | not with `+noscale` |
//! | `codebook.D-K` | F16 `[K, d]` | one for all `@universal` matrices of this d and K |
//!
//! W\[n, j d + i\] = scales\[n\] * codebooks\[j / group\]\[code(n, j)\]\[i\], of the rotated W where the spec rotates
//! ([`crate::pq::Rotation`]). The last subspace of a row may reach beyond `cols`; what it holds there does not count.
//!
//! Every other tensor is dense, F32, F16 or BF16, under the checkpoint's name. `tokenizer.json.zlib` (U8) is the
//! tokenizer, compressed.
//!
//! # Metadata
//!
//! All strings. `fasq.version` is "1". `fasq.config`, `fasq.generation_config` and `fasq.chat_template` are the
//! checkpoint's files of these names; `fasq.tokenizer_config` lacks `added_tokens_decoder` (tokenizer.json says the
//! same) and `chat_template`. `fasq.plan` is a JSON list with one [`PlanEntry`] for each quantized matrix.
//!
//! # Unfinished files
//!
//! [`Writer`] fills `OUT.fasq.partial` and renames it when it is whole. Until then the header's length is 0, which no
//! safetensors reader takes, and its place holds the writer's journal: the plan's fingerprint, then a line for each
//! matrix that is on disk.

mod assets;
mod layout;
mod reader;
mod writer;

use serde::{Deserialize, Serialize};

use crate::pq::{PqSpec, RowScale, Scope};
use crate::tensor::Stored;

pub use layout::Layout;
pub use reader::Reader;
pub use writer::{Progress, Writer, fnv1a, partial_path};

/// `fasq.version`.
const VERSION: &str = "1";
/// The tensor that holds the tokenizer.
const TOKENIZER: &str = "tokenizer.json.zlib";

/// A quantized matrix in `fasq.plan`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanEntry {
    pub name: String,
    /// `[rows, cols]`.
    pub shape: [usize; 2],
    pub spec: PqSpec,
    /// |W - W'|^2 / |W|^2.
    pub error: f64,
}

/// A tensor of the model, as a writer is told of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    pub name: String,
    pub shape: Vec<usize>,
    pub stored: Stored,
}

/// A tensor of the safetensors file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Part {
    name: String,
    dtype: safetensors::Dtype,
    shape: Vec<usize>,
}

impl Part {
    fn new(name: String, dtype: safetensors::Dtype, shape: impl Into<Vec<usize>>) -> Self {
        Self { name, dtype, shape: shape.into() }
    }
}

/// The tensors of a quantized matrix: codes, codebooks, scales.
struct Parts {
    codes: Part,
    /// The matrix's own, or the universal table that it shares.
    codebooks: Part,
    scales: Option<Part>,
}

impl Parts {
    fn new(name: &str, [rows, cols]: [usize; 2], spec: PqSpec) -> Self {
        use safetensors::Dtype::{F16, U8};
        let part = |kind: &str| format!("{name}.{kind}");
        Self {
            codes: Part::new(part("codes"), U8, [rows, spec.row_bytes(cols)]),
            codebooks: match spec.scope {
                Scope::Universal => Part::new(spec.universal_name(), F16, [spec.k, spec.d]),
                _ => Part::new(part("codebooks"), F16, [spec.codebooks(cols), spec.k, spec.d]),
            },
            scales: (spec.scale != RowScale::None).then(|| Part::new(part("scales"), F16, [rows])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pq::Rotation;

    /// What docs/format.md states is what the code does.
    #[test]
    fn the_document_states_the_constants() {
        let document = include_str!("../../docs/format.md");
        let header = crate::checkpoint::MAX_HEADER;
        let (dim, tokenizer) = (reader::MAX_DIM, assets::TOKENIZER_LIMIT);
        for row in [
            format!("| `fasq.version` | `{VERSION}` |"),
            format!("`{TOKENIZER}` (U8)"),
            format!("| rows, columns | 1 to {dim} |"),
            format!("| bytes of the header | {header} |"),
            format!("| bytes of the tokenizer, unpacked | {tokenizer} |"),
        ] {
            assert!(document.contains(&row), "docs/format.md lacks {row:?}");
        }
        assert!(
            document.contains("| D | 1 to 8 |") && document.contains("| K | a power of two, 4 to 65536 |")
        );
        let spec = |text: &str| text.parse::<PqSpec>();
        assert!(["1-4@matrix", "8-65536@matrix"].into_iter().all(|text| spec(text).is_ok()));
        assert!(["0-4", "9-4", "1-2", "1-131072", "1-6"].into_iter().all(|text| spec(text).is_err()));
        assert!(document.contains("| block of a rotation | 16 to 512,"));
        let block = |dim| Rotation::for_dim(dim).map(|rotation| rotation.block);
        assert_eq!([8, 16, 48, 512, 4096].map(block), [None, Some(16), Some(16), Some(512), Some(512)]);

        // The sizes of the three tensors.
        let (rows, cols, text) = (6, 21, "2-8@group:4+rms+norotate");
        let Parts { codes, codebooks, scales } = Parts::new("w", [rows, cols], spec(text).unwrap());
        let subspaces: usize = 11;
        assert_eq!(codes.shape, [rows, (subspaces * 3).div_ceil(8)]);
        assert_eq!(codebooks.shape, [subspaces.div_ceil(4), 8, 2]);
        assert_eq!(scales.unwrap().shape, [rows]);
    }
}
