//! [`Checkpoint`]: a Hugging Face folder, memory-mapped, or what another format makes of its files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use serde_json::Value;

use crate::config::ModelConfig;
use crate::tensor::{Dtype, TensorView};
use crate::{Error, Result};

/// The texts that travel with the weights: files of a Hugging Face folder, or their copies in a .fasq header.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assets {
    /// config.json.
    pub config: String,
    /// tokenizer.json.
    pub tokenizer: Option<String>,
    /// tokenizer_config.json, of which the special tokens' texts matter.
    pub tokenizer_config: Option<String>,
    /// generation_config.json.
    pub generation_config: Option<String>,
    /// The chat template, from chat_template.jinja or tokenizer_config.json.
    pub chat_template: Option<String>,
}

/// The weights of a folder in one file.
pub(crate) const WEIGHTS_FILE: &str = "model.safetensors";
/// The names of the files that the weights are spread over.
pub(crate) const INDEX_FILE: &str = "model.safetensors.index.json";

/// A tensor of any element type as it stands in a file, little-endian.
#[derive(Clone, Copy, Debug)]
pub struct RawTensor<'a> {
    pub dtype: safetensors::Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// A Hugging Face folder: config.json, tokenizer files, and one safetensors file or shards with an index. Clones share
/// the tensors.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    config: ModelConfig,
    assets: Assets,
    shards: Vec<Arc<Mmap>>,
    tensors: BTreeMap<String, Entry>,
    bytes: u64,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub dtype: safetensors::Dtype,
    pub shape: Vec<usize>,
    pub place: Place,
    /// Bytes that it takes, or stands for, in a file.
    pub stored: u64,
}

/// Where a tensor's bytes are.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// A range of a shard's bytes.
    File(usize, Range<usize>),
    Memory(Arc<Vec<u8>>),
}

impl Checkpoint {
    /// Opens the folder and reads every header; no tensor is read yet.
    pub fn open(dir: &Path) -> Result<Self> {
        let assets = read_assets(dir)?;
        let mut checkpoint = Self::without_tensors(assets)?;
        for path in shard_paths(dir)? {
            checkpoint.add_shard(path)?;
        }
        checkpoint.drop_twin();
        Ok(checkpoint)
    }

    /// A model of these texts, as yet without tensors.
    pub(crate) fn without_tensors(assets: Assets) -> Result<Self> {
        let config = ModelConfig::parse(&assets.config, assets.generation_config.as_deref())?;
        Ok(Self { config, assets, shards: Vec::new(), tensors: BTreeMap::new(), bytes: 0 })
    }

    /// Adds a file, which [`Place::File`] counts.
    pub(crate) fn add_file(&mut self, map: Mmap) {
        self.bytes += map.len() as u64;
        self.shards.push(Arc::new(map));
    }

    /// Adds a tensor; returns whether its name is new.
    pub(crate) fn insert(&mut self, name: String, entry: Entry) -> bool {
        self.tensors.insert(name, entry).is_none()
    }

    /// Forgets an output head that is the embedding stored a second time, where both are said to be one. A head of its own
    /// counts whatever is said of it, as in transformers.
    fn drop_twin(&mut self) {
        let named = |end: &str| self.tensors.iter().find(|(name, _)| name.ends_with(end));
        let (Some(true), Some((head, one)), Some((_, other))) =
            (self.config.tied, named("lm_head.weight"), named("embed_tokens.weight"))
        else {
            return;
        };
        if (one.dtype, &one.shape, self.bytes_of(one)) == (other.dtype, &other.shape, self.bytes_of(other)) {
            let head = head.clone();
            self.tensors.remove(&head);
        } else {
            log::warn!(
                "{head} differs from the embedding, although config.json says that they are one: it is used"
            );
        }
    }

    fn add_shard(&mut self, path: PathBuf) -> Result<()> {
        let map = map_file(&path)?;
        let what = || path.display().to_string();
        let (data_start, header) =
            read_header(&map).map_err(|found| Error::mismatch(what(), "a valid safetensors file", found))?;
        for (name, info) in header.tensors() {
            let (start, end) = info.data_offsets;
            let range = data_start + start..data_start + end;
            let place = Place::File(self.shards.len(), range);
            let stored = (end - start) as u64;
            let entry = Entry { dtype: info.dtype, shape: info.shape.clone(), place, stored };
            if !self.insert(name.clone(), entry) {
                return Err(Error::invalid(what(), format!("tensor {name} is in another shard too")));
            }
        }
        self.add_file(map);
        Ok(())
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Bytes of all safetensors files; of a baseline, what they would be.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The tensor called `name`; an error if it is missing or not F32, F16 or BF16.
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let raw = self.raw(name)?;
        let dtype = dense_dtype(raw.dtype).ok_or_else(|| {
            Error::mismatch(format!("tensor {name}"), "F32, F16 or BF16", format!("{:?}", raw.dtype))
        })?;
        Ok(TensorView { dtype, shape: raw.shape.to_vec(), bytes: raw.bytes })
    }

    /// The tensor called `name`, of whatever element type; an error if it is missing.
    pub fn raw(&self, name: &str) -> Result<RawTensor<'_>> {
        let entry = self
            .tensors
            .get(name)
            .ok_or_else(|| Error::invalid(format!("tensor {name}"), "missing from the checkpoint"))?;
        Ok(RawTensor { dtype: entry.dtype, shape: &entry.shape, bytes: self.bytes_of(entry) })
    }

    fn bytes_of<'a>(&'a self, entry: &'a Entry) -> &'a [u8] {
        match &entry.place {
            Place::File(shard, range) => &self.shards[*shard][range.clone()],
            Place::Memory(bytes) => bytes,
        }
    }

    /// Puts a matrix in the place of the tensors `replaced`; it counts as `stored` bytes of the files, or as many as
    /// they had.
    pub(crate) fn replace(
        &mut self,
        replaced: &[String],
        name: String,
        shape: [usize; 2],
        values: &[f16],
        stored: Option<u64>,
    ) {
        let old: u64 = replaced.iter().filter_map(|name| self.tensors.remove(name)).map(|e| e.stored).sum();
        let stored = stored.unwrap_or(old);
        self.bytes = self.bytes.saturating_sub(old) + stored;
        let place = Place::Memory(Arc::new(bytemuck::cast_slice(values).to_vec()));
        let entry = Entry { dtype: safetensors::Dtype::F16, shape: shape.to_vec(), place, stored };
        self.tensors.insert(name, entry);
    }

    /// Tells the system that a tensor's pages are not needed for now, so that streaming through a large checkpoint
    /// does not fill the memory.
    pub fn release(&self, name: &str) {
        #[cfg(unix)]
        if let Some(Entry { place: Place::File(shard, range), .. }) = self.tensors.get(name) {
            // SAFETY: the map is a read-only file mapping: dropped pages are read from the file again.
            let advised = unsafe {
                self.shards[*shard].unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start,
                    range.len(),
                )
            };
            if let Err(e) = advised {
                log::debug!("madvise for {name}: {e}");
            }
        }
        #[cfg(not(unix))]
        let _ = name;
    }
}

/// The dense element type of a safetensors dtype, if it is one.
pub(crate) fn dense_dtype(dtype: safetensors::Dtype) -> Option<Dtype> {
    match dtype {
        safetensors::Dtype::F32 => Some(Dtype::F32),
        safetensors::Dtype::F16 => Some(Dtype::F16),
        safetensors::Dtype::BF16 => Some(Dtype::BF16),
        _ => None,
    }
}

/// The longest header that the safetensors format allows.
pub(crate) const MAX_HEADER: usize = 100_000_000;

/// Where the data of a safetensors file starts, and its header, whose offsets cover the rest of the file without gap or
/// overlap; or what is there instead.
pub(crate) fn read_header(bytes: &[u8]) -> Result<(usize, Metadata), String> {
    let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| format!("{} bytes", bytes.len()))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER || length > rest.len() {
        return Err(format!("{} bytes that begin with a header length of {length}", bytes.len()));
    }
    let (header, data) = rest.split_at(length);
    let header: Metadata = serde_json::from_slice(header).map_err(|e| format!("a bad header: {e}"))?;
    match header.data_len() == data.len() {
        true => Ok((8 + length, header)),
        false => Err(format!("{} bytes of data where its header places {}", data.len(), header.data_len())),
    }
}

/// Memory-maps a file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: the map is only read. Should another program shorten the file meanwhile, the system ends this one:
    // the usual contract of memory-mapped model files.
    unsafe { Mmap::map(&file) }.map_err(Error::io(path))
}

fn read_assets(dir: &Path) -> Result<Assets> {
    if !dir.is_dir() {
        let found = if dir.exists() { "a file" } else { "nothing there" };
        return Err(Error::mismatch(dir.display().to_string(), "a Hugging Face model folder", found));
    }
    let optional = |name: &str| read_text(&dir.join(name));
    let config = optional("config.json")?
        .ok_or_else(|| Error::invalid(dir.display().to_string(), "no config.json in this folder"))?;
    let tokenizer_config = optional("tokenizer_config.json")?.filter(is_object("tokenizer_config.json"));
    let chat_template = match optional("chat_template.jinja")? {
        Some(template) => Some(template),
        None => tokenizer_config.as_deref().map(template_of).transpose()?.flatten(),
    };
    Ok(Assets {
        config,
        tokenizer: optional("tokenizer.json")?,
        tokenizer_config,
        generation_config: optional("generation_config.json")?.filter(is_object("generation_config.json")),
        chat_template,
    })
}

/// Whether a side file's text is a JSON object. A damaged one is left out with a warning, because its settings have
/// defaults.
fn is_object(name: &str) -> impl Fn(&String) -> bool {
    move |text| match serde_json::from_str::<serde_json::Map<String, Value>>(text) {
        Ok(_) => true,
        Err(e) => {
            log::warn!("{name} is ignored: {e}");
            false
        }
    }
}

/// The `chat_template` of tokenizer_config.json: a text, or a list of named ones of which `default` is taken.
fn template_of(tokenizer_config: &str) -> Result<Option<String>> {
    let config: Value =
        serde_json::from_str(tokenizer_config).map_err(|e| Error::invalid("tokenizer_config.json", e))?;
    let default = |list: &Vec<Value>| {
        list.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str().map(str::to_owned))
    };
    Ok(match &config["chat_template"] {
        Value::String(template) => Some(template.clone()),
        Value::Array(list) => default(list),
        _ => None,
    })
}

pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => Err(Error::invalid(path.display().to_string(), format!("not UTF-8: {e}"))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path)(e)),
    }
}

/// The safetensors files of a folder: model.safetensors, or else those that the index names. An index beside a whole file
/// may be of another upload; transformers ignores it too.
fn shard_paths(dir: &Path) -> Result<Vec<PathBuf>> {
    let whole = dir.join(WEIGHTS_FILE);
    if whole.exists() {
        return Ok(vec![whole]);
    }
    let Some(index) = read_text(&dir.join(INDEX_FILE))? else {
        let found = "neither is there";
        return Err(Error::mismatch(
            dir.display().to_string(),
            "model.safetensors or model.safetensors.index.json",
            found,
        ));
    };
    let files = indexed_files(&index)?;
    let missing: Vec<&str> =
        files.iter().map(String::as_str).filter(|file| !dir.join(file).exists()).collect();
    match missing.first() {
        None => Ok(files.iter().map(|file| dir.join(file)).collect()),
        Some(first) => {
            Err(bad_index(format!("{} of {} shards are missing, first {first}", missing.len(), files.len())))
        }
    }
}

/// The files that the text of an index names; each is the plain name of a file beside it.
pub(crate) fn indexed_files(index: &str) -> Result<BTreeSet<String>> {
    let index: Value = serde_json::from_str(index).map_err(|e| bad_index(e.to_string()))?;
    let map = index["weight_map"].as_object().ok_or_else(|| bad_index("no weight_map".into()))?;
    let mut files = BTreeSet::new();
    for (tensor, file) in map {
        let file = file.as_str().ok_or_else(|| bad_index(format!("{tensor}: {file} is not a file name")))?;
        if Path::new(file).file_name() != Some(file.as_ref()) {
            return Err(bad_index(format!("{tensor}: {file:?} is not the name of a file in this folder")));
        }
        files.insert(file.to_owned());
    }
    match files.is_empty() {
        false => Ok(files),
        true => Err(bad_index("weight_map is empty".into())),
    }
}

fn bad_index(why: String) -> Error {
    Error::invalid(INDEX_FILE, why)
}
