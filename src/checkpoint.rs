//! [`Checkpoint`]: a Hugging Face folder, memory-mapped, or what another format makes of its files.

mod assets;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::f16;
use memmap2::Mmap;
use safetensors::tensor::Metadata;
use serde_json::Value;

pub use self::assets::Assets;
pub(crate) use self::assets::read_text;
use crate::config::ModelConfig;
use crate::tensor::{Dtype, TensorView};
use crate::{Error, Result};

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
        let assets = assets::read(dir)?;
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
