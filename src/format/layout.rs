//! [`Layout`]: what a .fasq file holds and where, known before any work is done.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::assets::Texts;
use super::{Content, Part, Parts, PlanEntry, TOKENIZER, VERSION};
use crate::checkpoint::Assets;
use crate::tensor::{Dtype, Stored};
use crate::{Error, Result};

/// As wide as any relative error is written: four digits and an exponent.
const WIDEST_ERROR: f64 = 1.234e-100;

/// A file's tensors and texts, placed.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Bytes of the header, padding included.
    pub(super) header_len: u64,
    pub(super) texts: Arc<Texts>,
    pub(super) parts: BTreeMap<String, Place>,
    /// With the widest errors until they are known.
    pub(super) plan: Vec<PlanEntry>,
}

/// A tensor's bytes, counted from the start of the data.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub part: Part,
    pub start: u64,
    pub end: u64,
}

impl Layout {
    /// The layout of a file with these tensors and texts.
    ///
    /// # Errors
    /// Two tensors of one name, a quantized tensor that is no matrix, texts that are not the JSON that they must be.
    pub fn new(contents: &[Content], assets: &Assets) -> Result<Self> {
        Self::of(contents, Arc::new(Texts::new(assets)?))
    }

    /// The layout of a file with other tensors and the same texts, which are not compressed again.
    pub fn with_contents(&self, contents: &[Content]) -> Result<Self> {
        Self::of(contents, self.texts.clone())
    }

    fn of(contents: &[Content], texts: Arc<Texts>) -> Result<Self> {
        let mut layout = Self {
            header_len: 0,
            parts: place(all_parts(contents, texts.tokenizer.as_deref())?)?,
            plan: contents.iter().filter_map(plan_entry).collect(),
            texts,
        };
        layout.header_len = layout.header()?.len().next_multiple_of(8) as u64;
        Ok(layout)
    }

    /// Bytes of the finished file.
    pub fn file_len(&self) -> u64 {
        8 + self.header_len + self.parts.values().map(|place| place.end).max().unwrap_or(0)
    }

    /// The header without its padding: never longer than the one of a new layout, whose errors are widest.
    pub(super) fn header(&self) -> Result<String> {
        let plan = serde_json::to_string(&self.plan).map_err(|e| Error::invalid("fasq.plan", e))?;
        let mut metadata = Map::new();
        metadata.insert("format".into(), "fasq".into());
        metadata.insert("fasq.version".into(), VERSION.into());
        metadata
            .extend(self.texts.metadata.iter().map(|(key, text)| (key.to_string(), text.as_str().into())));
        metadata.insert("fasq.plan".into(), plan.into());
        let mut header = Map::from_iter([("__metadata__".to_owned(), Value::Object(metadata))]);
        for (name, Place { part, start, end }) in &self.parts {
            let info = json!({ "dtype": part.dtype, "shape": part.shape, "data_offsets": [start, end] });
            header.insert(name.clone(), info);
        }
        Ok(Value::Object(header).to_string())
    }

    /// Puts a matrix's relative error into the plan.
    pub(super) fn set_error(&mut self, name: &str, error: f64) {
        if let Some(entry) = self.plan.iter_mut().find(|entry| entry.name == name) {
            entry.error = rounded(error);
        }
    }
}

fn plan_entry(content: &Content) -> Option<PlanEntry> {
    match (content.stored, &content.shape[..]) {
        (Stored::Pq(spec), &[rows, cols]) => {
            Some(PlanEntry { name: content.name.clone(), shape: [rows, cols], spec, error: WIDEST_ERROR })
        }
        _ => None,
    }
}

/// Every tensor of the file.
fn all_parts(contents: &[Content], tokenizer: Option<&[u8]>) -> Result<BTreeMap<String, Part>> {
    let mut parts = BTreeMap::new();
    let mut add = |part: Part| match parts.insert(part.name.clone(), part.clone()) {
        Some(other) if other != part || !part.name.starts_with("codebook.") => {
            Err(Error::invalid(part.name, "two tensors of this name"))
        }
        _ => Ok(()),
    };
    for content in contents {
        match (content.stored, &content.shape[..]) {
            (Stored::Pq(spec), &[rows, cols]) => {
                let Parts { codes, codebooks, scales } = Parts::new(&content.name, [rows, cols], spec);
                for part in [Some(codes), Some(codebooks), scales].into_iter().flatten() {
                    add(part)?;
                }
            }
            (Stored::Pq(_), shape) => {
                return Err(Error::mismatch(&content.name, "two dimensions", format!("{shape:?}")));
            }
            (Stored::Dense(dtype), shape) => {
                let dtype = match dtype {
                    Dtype::F32 => safetensors::Dtype::F32,
                    Dtype::F16 => safetensors::Dtype::F16,
                    Dtype::BF16 => safetensors::Dtype::BF16,
                };
                add(Part::new(content.name.clone(), dtype, shape))?;
            }
        }
    }
    if let Some(tokenizer) = tokenizer {
        add(Part::new(TOKENIZER.into(), safetensors::Dtype::U8, [tokenizer.len()]))?;
    }
    Ok(parts)
}

/// Lays the tensors out.
fn place(parts: BTreeMap<String, Part>) -> Result<BTreeMap<String, Place>> {
    let mut ordered: Vec<Part> = parts.into_values().collect();
    // By name within a dtype, as they came; safetensors orders dtypes by alignment.
    ordered.sort_by_key(|part| std::cmp::Reverse(part.dtype));
    let mut start = 0u64;
    let mut places = BTreeMap::new();
    for part in ordered {
        let bytes =
            part.shape.iter().try_fold(part.dtype.bitsize() as u64 / 8, |n, &dim| n.checked_mul(dim as u64));
        let end = bytes.and_then(|bytes| start.checked_add(bytes));
        let end = end.ok_or_else(|| Error::invalid(&part.name, format!("{:?} is too large", part.shape)))?;
        places.insert(part.name.clone(), Place { part, start, end });
        start = end;
    }
    Ok(places)
}

/// Four digits: what people read, in a width that is known before the work.
fn rounded(error: f64) -> f64 {
    if error < 1e-99 { 0.0 } else { format!("{error:.3e}").parse().unwrap_or(error) }
}
