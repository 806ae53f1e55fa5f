//! [`Reader`]: a .fasq file, checked before anything of it is used.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::f16;
use safetensors::tensor::TensorInfo;

use super::{Part, Parts, PlanEntry, TOKENIZER, VERSION, assets};
use crate::backend::{Dtype, WeightData};
use crate::checkpoint::{self, Assets};
use crate::config::ModelConfig;
use crate::pq::{PqMatrix, Scope};
use crate::tensor::{Form, Stored, TensorView, f16_slice};
use crate::{Error, Result};

/// Largest dimension of a matrix: far beyond any model, and the product of two fits into 64 bits.
pub(super) const MAX_DIM: usize = 1 << 28;

/// An open .fasq file. Opening reads the header, the tokenizer and the universal tables; matrices are read, and their
/// scales and codebooks checked, when they are asked for.
#[derive(Debug)]
pub struct Reader {
    /// The file's name, for error texts.
    origin: String,
    bytes: Bytes,
    config: ModelConfig,
    assets: Assets,
    plan: Vec<PlanEntry>,
    /// By name, an index into the plan.
    matrices: BTreeMap<String, usize>,
    dense: BTreeMap<String, Dense>,
    /// Where each part of the quantized matrices is.
    parts: HashMap<String, Range<usize>>,
    /// By name, the universal tables.
    tables: HashMap<String, Arc<[f16]>>,
}

#[derive(Debug)]
enum Bytes {
    Map(memmap2::Mmap),
    Memory(Cow<'static, [u8]>),
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Map(map) => map,
            Bytes::Memory(bytes) => bytes,
        }
    }
}

#[derive(Debug)]
struct Dense {
    dtype: Dtype,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Reader {
    /// Maps a file into memory.
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(path.display().to_string(), Bytes::Map(checkpoint::map_file(path)?))
    }

    /// Reads a file that is in memory: built in, or fetched by a browser.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self> {
        Self::new("model".into(), Bytes::Memory(bytes.into()))
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// Bytes of the whole file.
    pub fn bytes(&self) -> u64 {
        self.bytes.get().len() as u64
    }

    /// The quantized matrices.
    pub fn plan(&self) -> &[PlanEntry] {
        &self.plan
    }

    /// The model's tensors, quantized or dense, under the checkpoint's names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.matrices.keys().chain(self.dense.keys()).map(String::as_str)
    }

    /// Whether the model has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.matrices.contains_key(name) || self.dense.contains_key(name)
    }

    /// The form of the matrix called `name`.
    pub fn form(&self, name: &str) -> Result<Form> {
        let Some(&at) = self.matrices.get(name) else { return Ok(self.tensor(name)?.weight(name)?.form()) };
        let PlanEntry { shape: [rows, cols], spec, .. } = self.plan[at];
        Ok(Form { rows, cols, stored: Stored::Pq(spec) })
    }

    /// The matrix called `name`, quantized or dense.
    pub fn weight(&self, name: &str) -> Result<WeightData<'_>> {
        match self.matrices.get(name) {
            Some(&at) => self.matrix(&self.plan[at]).map(WeightData::Pq),
            None => self.tensor(name)?.weight(name),
        }
    }

    /// The dense tensor called `name`.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let why = if self.matrices.contains_key(name) { "quantized, not dense" } else { "not in the file" };
        let dense = self.dense.get(name).ok_or_else(|| self.invalid(name, why))?;
        let bytes = &self.bytes.get()[dense.range.clone()];
        Ok(TensorView { dtype: dense.dtype, shape: dense.shape.clone(), bytes })
    }

    fn matrix(&self, entry: &PlanEntry) -> Result<PqMatrix<'_>> {
        let [rows, cols] = entry.shape;
        let Parts { codes, codebooks, scales } = Parts::new(&entry.name, entry.shape, entry.spec);
        let bytes = |part: &Part| &self.bytes.get()[self.parts[&part.name].clone()];
        let codebooks = match entry.spec.scope {
            Scope::Universal => self.tables[&codebooks.name].clone(),
            Scope::Matrix | Scope::Group(_) | Scope::Subspace => f16_slice(bytes(&codebooks)).into(),
        };
        let scales = scales.map_or(Cow::Borrowed(&[][..]), |scales| f16_slice(bytes(&scales)));
        let codes = Cow::Borrowed(bytes(&codes));
        let name = format!("{}: {}", self.origin, entry.name);
        PqMatrix { spec: entry.spec, rows, cols, codes, codebooks, scales }.checked(&name)
    }

    fn invalid(&self, what: &str, why: impl ToString) -> Error {
        Error::invalid(format!("{}: {what}", self.origin), why)
    }

    fn new(origin: String, bytes: Bytes) -> Result<Self> {
        let (data_start, header) = checkpoint::read_header(bytes.get())
            .map_err(|found| Error::mismatch(&origin, "a .fasq file", found))?;
        let no_metadata = HashMap::new();
        let metadata = header.metadata().as_ref().unwrap_or(&no_metadata);
        match metadata.get("fasq.version").map(String::as_str) {
            Some(VERSION) => {}
            Some(other) => {
                let what = format!("{origin}: fasq.version");
                return Err(Error::mismatch(what, format!("{VERSION:?}"), format!("{other:?}")));
            }
            None => {
                let found = "a safetensors file without fasq.version";
                return Err(Error::mismatch(origin, "a .fasq file", found));
            }
        }
        let named = |e: Error| Error::invalid(&origin, e);
        let bad_plan = |why: String| Error::invalid(format!("{origin}: fasq.plan"), why);
        let text = |key: &str| metadata.get(key).cloned();
        let plan = text("fasq.plan").ok_or_else(|| bad_plan("missing".into()))?;
        let plan: Vec<PlanEntry> = serde_json::from_str(&plan).map_err(|e| bad_plan(e.to_string()))?;
        let mut tensors = header.tensors();
        let range = |info: &TensorInfo| data_start + info.data_offsets.0..data_start + info.data_offsets.1;

        let tokenizer =
            tensors.remove(TOKENIZER).map(|info| assets::unpack_tokenizer(&bytes.get()[range(info)]));
        let assets = Assets {
            config: text("fasq.config").ok_or_else(|| Error::invalid(&origin, "no fasq.config"))?,
            tokenizer: tokenizer.transpose().map_err(named)?,
            tokenizer_config: text("fasq.tokenizer_config"),
            generation_config: text("fasq.generation_config"),
            chat_template: text("fasq.chat_template"),
        };
        let config =
            ModelConfig::parse(&assets.config, assets.generation_config.as_deref()).map_err(named)?;

        let (mut matrices, mut parts, mut tables) = (BTreeMap::new(), HashMap::new(), HashMap::new());
        for (at, entry) in plan.iter().enumerate() {
            check_entry(entry).map_err(bad_plan)?;
            if matrices.insert(entry.name.clone(), at).is_some() {
                return Err(bad_plan(format!("{} is there twice", entry.name)));
            }
            let Parts { codes, codebooks, scales } = Parts::new(&entry.name, entry.shape, entry.spec);
            for part in [Some(codes), Some(codebooks), scales].into_iter().flatten() {
                let info = tensors.get(&part.name).ok_or_else(|| {
                    Error::invalid(
                        format!("{origin}: {}", part.name),
                        format!("missing; {} needs it", entry.name),
                    )
                })?;
                if info.dtype != part.dtype || info.shape != part.shape {
                    return Err(Error::mismatch(
                        format!("{origin}: {}", part.name),
                        format!("{:?} {:?} for {}", part.dtype, part.shape, entry.spec),
                        format!("{:?} {:?}", info.dtype, info.shape),
                    ));
                }
                if part.name == entry.spec.universal_name() && !tables.contains_key(&part.name) {
                    let table: Arc<[f16]> = f16_slice(&bytes.get()[range(info)]).into();
                    tables.insert(part.name.clone(), table);
                }
                parts.insert(part.name, range(info));
            }
        }

        let mut dense = BTreeMap::new();
        for (name, info) in tensors.into_iter().filter(|(name, _)| !parts.contains_key(name)) {
            let what = || format!("{origin}: {name}");
            let dtype = checkpoint::dense_dtype(info.dtype)
                .ok_or_else(|| Error::mismatch(what(), "F32, F16 or BF16", format!("{:?}", info.dtype)))?;
            if matrices.contains_key(&name) {
                return Err(Error::invalid(what(), "both dense and quantized"));
            }
            dense.insert(name, Dense { dtype, shape: info.shape.clone(), range: range(info) });
        }
        Ok(Self { origin, bytes, config, assets, plan, matrices, dense, parts, tables })
    }
}

/// What a plan entry must fulfil before its sizes are computed with.
fn check_entry(entry: &PlanEntry) -> Result<(), String> {
    let PlanEntry { name, shape: [rows, cols], spec, .. } = entry;
    if ![rows, cols].iter().all(|&&dim| (1..=MAX_DIM).contains(&dim)) {
        return Err(format!("{name}: [{rows}, {cols}] is not a matrix"));
    }
    if *spec != spec.for_cols(*cols) {
        return Err(format!("{name}: {cols} columns cannot be rotated as {spec} says"));
    }
    Ok(())
}
