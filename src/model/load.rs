//! Where weights come from, and their way into a [`Model`]: every tensor is taken once, with its shape; wrong,
//! missing and unused tensors are errors.

use std::collections::BTreeSet;
use std::path::Path;

use super::arch::{self, Names, Role, arch, may_skip};
use super::forward::Layer;
use super::linear::Embedding;
use super::room;
use crate::backend::{Backend, Form, WeightData};
use crate::baseline::{self, Rtn};
use crate::checkpoint::{Assets, Checkpoint};
use crate::config::ModelConfig;
use crate::format::{Reader, fnv1a};
use crate::tensor::TensorView;
use crate::{Error, Result};

/// A model on disk or in memory.
#[derive(Debug)]
pub enum Source {
    Checkpoint(Checkpoint),
    File(Reader),
    #[cfg(not(target_arch = "wasm32"))]
    Random(super::random::Random),
}

impl Source {
    /// A Hugging Face folder, unquantized or of GPTQ or AWQ, or a .fasq file.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Reader::open(path).map(Self::File);
        }
        let mut checkpoint = Checkpoint::open(path)?;
        baseline::unpack(&mut checkpoint)?;
        Ok(Self::Checkpoint(checkpoint))
    }

    /// Rounds the linear layers of an unquantized checkpoint.
    pub fn round(&mut self, rtn: Rtn) -> Result<()> {
        let Source::Checkpoint(checkpoint) = self else {
            return Err(Error::invalid(format!("baseline {rtn}"), "it wants an unquantized model's folder"));
        };
        let tensors = arch::tensors(checkpoint.config(), &|name| checkpoint.contains(name));
        for tensor in tensors.iter().filter(|tensor| tensor.role == Role::Linear) {
            rtn.round(checkpoint, &tensor.name)?;
        }
        Ok(())
    }

    pub fn config(&self) -> &ModelConfig {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.config(),
            Source::File(file) => file.config(),
            #[cfg(not(target_arch = "wasm32"))]
            Source::Random(random) => random.config(),
        }
    }

    pub fn assets(&self) -> &Assets {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.assets(),
            Source::File(file) => file.assets(),
            #[cfg(not(target_arch = "wasm32"))]
            Source::Random(random) => random.assets(),
        }
    }

    /// Tells models apart, by config and size.
    pub fn fingerprint(&self) -> String {
        format!("{:016x}", fnv1a(self.assets().config.as_bytes(), self.bytes()))
    }

    /// Bytes of the weight files.
    pub fn bytes(&self) -> u64 {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.bytes(),
            Source::File(file) => file.bytes(),
            #[cfg(not(target_arch = "wasm32"))]
            Source::Random(random) => random.bytes(),
        }
    }

    /// Names of the tensors, quantized ones by the name of the tensor that they stand for.
    pub fn names(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Source::Checkpoint(checkpoint) => Box::new(checkpoint.names()),
            Source::File(file) => Box::new(file.names()),
            #[cfg(not(target_arch = "wasm32"))]
            Source::Random(random) => Box::new(random.names()),
        }
    }

    fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.tensor(name),
            Source::File(file) => file.tensor(name),
            #[cfg(not(target_arch = "wasm32"))]
            Source::Random(random) => random.tensor(name),
        }
    }

    /// A matrix's form, of which nothing but headers is read.
    pub(super) fn form(&self, name: &str) -> Result<Form> {
        match self {
            Source::Checkpoint(checkpoint) => Ok(checkpoint.tensor(name)?.weight(name)?.form()),
            Source::File(file) => file.form(name),
            #[cfg(not(target_arch = "wasm32"))]
            Source::Random(random) => random.form(name),
        }
    }

    fn weight(&self, name: &str) -> Result<WeightData<'_>> {
        match self {
            Source::Checkpoint(checkpoint) => checkpoint.tensor(name)?.weight(name),
            Source::File(file) => file.weight(name),
            #[cfg(not(target_arch = "wasm32"))]
            Source::Random(random) => random.weight(name),
        }
    }
}

/// The tensors of a source on their way to a backend.
pub struct Tensors<'a, B: Backend> {
    source: &'a Source,
    backend: &'a B,
    present: BTreeSet<&'a str>,
    taken: BTreeSet<String>,
    bytes: u64,
}

impl<'a, B: Backend> Tensors<'a, B> {
    fn new(source: &'a Source, backend: &'a B) -> Self {
        Self { source, backend, present: source.names().collect(), taken: BTreeSet::new(), bytes: 0 }
    }

    pub fn backend(&self) -> &'a B {
        self.backend
    }

    fn take(&mut self, name: &str) -> Result<()> {
        if !self.present.contains(name) {
            return Err(Error::invalid(format!("tensor {name}"), "missing from the model"));
        }
        self.taken.insert(name.to_owned());
        Ok(())
    }

    /// A weight `[out, in]` of this shape.
    pub fn weight(&mut self, name: &str, shape: [usize; 2]) -> Result<WeightData<'a>> {
        self.take(name)?;
        let weight = self.source.weight(name)?;
        let (rows, cols) = weight.shape();
        check_shape(name, &shape, &[rows, cols])?;
        self.bytes += weight.form().bytes();
        Ok(weight)
    }

    /// A small dense tensor of this shape, as f32.
    pub fn values(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.take(name)?;
        let tensor = self.source.tensor(name)?;
        check_shape(name, shape, &tensor.shape)?;
        self.bytes += tensor.bytes.len() as u64;
        Ok(tensor.to_f32())
    }

    /// [`Tensors::values`], uploaded.
    pub fn buffer(&mut self, name: &str, shape: &[usize]) -> Result<B::Buffer> {
        let values = self.values(name, shape)?;
        self.backend.upload(bytemuck::cast_slice(&values))
    }

    /// Fails if a tensor is left that no model of this family may leave.
    fn finish(self) -> Result<u64> {
        let config = self.source.config();
        let left: Vec<&&str> = self
            .present
            .iter()
            .filter(|name| !self.taken.contains(**name) && !may_skip(config, name))
            .collect();
        match left.first() {
            None => Ok(self.bytes),
            Some(first) => Err(Error::invalid(
                format!("tensor {first}"),
                format!(
                    "not part of this model ({} such tensor{})",
                    left.len(),
                    if left.len() == 1 { "" } else { "s" }
                ),
            )),
        }
    }
}

fn check_shape(name: &str, expected: &[usize], found: &[usize]) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::mismatch(format!("tensor {name}"), format!("shape {expected:?}"), format!("{found:?}")))
}

/// A model, its weights on a backend.
pub struct Model<B: Backend> {
    pub(super) backend: B,
    pub(super) config: ModelConfig,
    pub(super) embed: Embedding<B>,
    pub(super) layers: Vec<Layer<B>>,
    pub(super) norm: B::Buffer,
    /// None where the embedding serves.
    pub(super) head: Option<Embedding<B>>,
    /// `[rotary_dim / 2]`.
    pub(super) inv_freq: B::Buffer,
    weight_bytes: u64,
}

impl<B: Backend> Model<B> {
    /// Loads every weight of `source` onto the backend.
    pub fn load(backend: B, source: &Source) -> Result<Self> {
        backend.check_room(room::weights(&backend, source)?)?;
        let config = source.config().clone();
        let mut tensors = Tensors::new(source, &backend);
        let present = tensors.present.clone();
        let names = Names::of(&config, &|name| present.contains(name));
        let table = [config.vocab, config.hidden];
        let embed = Embedding::load(&mut tensors, &names.embed(), table)?;
        let embed_bytes = tensors.bytes;
        let layers = (0..config.layers.len())
            .map(|i| Layer::load(&mut tensors, &config, &names, i))
            .collect::<Result<_>>()?;
        let norm = tensors.buffer(&names.norm(), &[config.hidden])?;
        let head = if names.tied { None } else { Some(Embedding::load(&mut tensors, &names.head(), table)?) };
        let bytes = tensors.finish()?;
        let inv_freq = backend.upload(bytemuck::cast_slice(&config.rope.inv_freq()))?;
        // An embedding that is not the head as well is read one row at a time.
        let weight_bytes = if head.is_some() { bytes - embed_bytes } else { bytes };
        Ok(Self { config, embed, layers, norm, head, inv_freq, weight_bytes, backend })
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Bytes of weights, as stored, that one decoded token reads.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    pub(super) fn head(&self) -> &Embedding<B> {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// The offset that this family adds to norm weights.
    pub(super) fn norm_offset(&self) -> f32 {
        arch(self.config.family).norm_offset
    }
}
