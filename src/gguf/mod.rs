//! GGUF files, as llama.cpp writes them: what a Hugging Face folder would have held.
//!
//! Metadata become the texts of config.json, tokenizer.json and tokenizer_config.json; tensors get the folder's names and
//! the order of its rows. Quantized ones become f16 in memory, so that everything behind a [`Checkpoint`] is the same for
//! both.

mod arch;
mod blocks;
mod config;
mod container;
mod metadata;
mod pieces;
mod split;
mod tensors;
mod tokenizer;
mod vocabulary;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use self::arch::Arch;
use self::container::{Container, MAGIC, TensorInfo};
use self::metadata::Metadata;
use self::tensors::Change;
use crate::checkpoint::{Assets, Checkpoint, Entry, Place, map_file};
use crate::config::ModelConfig;
use crate::{Error, Result};

/// Whether a file is one of GGUF, by its first bytes.
pub fn is_gguf(path: &Path) -> bool {
    let mut start = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == *MAGIC
}

/// Opens a file, or all files of a model of which it is one, and decodes quantized tensors: a warning names their types.
///
/// # Errors
/// A damaged file; an architecture, tokenizer or type of elements that is unknown; a tensor that does not fit the
/// configuration.
pub fn open(path: &Path) -> Result<Checkpoint> {
    let files = split::files(path)?;
    let maps = files.iter().map(|file| map_file(file)).collect::<Result<Vec<_>>>()?;
    let mut containers = Vec::new();
    for (at, (file, map)) in files.iter().zip(&maps).enumerate() {
        let in_file = |e: String| Error::invalid(file.display().to_string(), e);
        let container = Container::parse(map).map_err(in_file)?;
        split::check(&container.metadata, at, files.len()).map_err(|e| in_file(e.to_string()))?;
        containers.push(container);
    }
    let bytes: Vec<&[u8]> = maps.iter().map(|map| &map[..]).collect();
    let mut checkpoint =
        checkpoint(&containers, &bytes).map_err(|e| Error::invalid(path.display().to_string(), e))?;
    let types: BTreeSet<&str> = tensors_of(&containers)
        .filter(|(_, tensor)| tensor.blocks.dense().is_none())
        .map(|(_, tensor)| tensor.blocks.name)
        .collect();
    if !types.is_empty() {
        let types = types.into_iter().collect::<Vec<_>>().join(", ");
        log::warn!(
            "{}: weights in {types} become f16; quantizing them again adds to the loss that they have",
            path.display()
        );
    }
    drop(containers);
    maps.into_iter().for_each(|map| checkpoint.add_file(map));
    Ok(checkpoint)
}

/// Every tensor, with the number of its file.
fn tensors_of<'a>(containers: &'a [Container<'a>]) -> impl Iterator<Item = (usize, &'a TensorInfo<'a>)> {
    containers
        .iter()
        .enumerate()
        .flat_map(|(file, container)| container.tensors.iter().map(move |tensor| (file, tensor)))
}

/// The model of these files, the first of which has the metadata; their bytes are still to be added.
fn checkpoint(containers: &[Container<'_>], files: &[&[u8]]) -> Result<Checkpoint> {
    let first = containers.first().ok_or_else(|| Error::mismatch("files", "at least 1", 0))?;
    let metadata = &first.metadata;
    let key = "general.architecture";
    let arch = Arch::new(Metadata::required(key, metadata.text(key)?)?)?;
    let mut checkpoint = Checkpoint::without_tensors(assets(arch, containers, files)?)?;
    for (file, info) in tensors_of(containers) {
        if let Some((name, entry)) = entry(arch, checkpoint.config(), file, info, files[file])? {
            if !checkpoint.insert(name, entry) {
                return Err(Error::invalid(format!("tensor {}", info.name), "it is there twice"));
            }
        }
    }
    Ok(checkpoint)
}

/// The texts of the folder.
fn assets(arch: &Arch, containers: &[Container<'_>], files: &[&[u8]]) -> Result<Assets> {
    let metadata = &containers[0].metadata;
    let find = |name: &str| tensors_of(containers).find(|(_, tensor)| tensor.name == name);
    let embed = "token_embd.weight";
    let (_, embed) =
        find(embed).ok_or_else(|| Error::invalid(format!("tensor {embed}"), "missing from the file"))?;
    let factors = |name: &str| {
        let (file, tensor) = find(name)?;
        let mut factors = vec![0.0; tensor.shape.iter().product()];
        tensor.blocks.decode(&files[file][tensor.bytes.clone()], &mut factors);
        Some(factors)
    };
    let tensors =
        config::Tensors { has: &|name| find(name).is_some(), vocab: embed.shape[0], factors: &factors };
    let texts = tokenizer::texts(metadata, arch.name)?;
    let (tokenizer, tokenizer_config) = texts.map(|texts| (texts.tokenizer, texts.config)).unzip();
    Ok(Assets {
        config: config::config(arch, metadata, &tensors)?,
        tokenizer,
        tokenizer_config,
        generation_config: None,
        chat_template: metadata.text("tokenizer.chat_template")?.map(str::to_owned),
    })
}

/// A tensor under its name in the folder, from the bytes of its file; none if the folder would not have it.
fn entry(
    arch: &Arch,
    config: &ModelConfig,
    file: usize,
    info: &TensorInfo<'_>,
    bytes: &[u8],
) -> Result<Option<(String, Entry)>> {
    let Some(place) = arch.place(info.name)? else { return Ok(None) };
    // Of layers that foresee further tokens.
    if arch.name == "qwen35" && place.layer.is_some_and(|layer| layer >= config.layers.len()) {
        return Ok(None);
    }
    let mut shape = info.shape.clone();
    if place.part == "linear_attn.conv1d.weight" {
        shape.insert(1, 1);
    }
    let change = Change::new(arch, config, &place, info)?;
    let (dtype, at) = match info.blocks.dense() {
        Some(dtype) if change.is_none() => (dtype, Place::File(file, info.bytes.clone())),
        Some(_) | None => {
            let (dtype, bytes) = change.apply(info, bytes)?;
            (dtype, Place::Memory(Arc::new(bytes)))
        }
    };
    let stored = info.bytes.len() as u64;
    Ok(Some((place.name(), Entry { dtype, shape, place: at, stored })))
}
