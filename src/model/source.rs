//! [`Source`]: where weights come from. Missing, unused and wrongly shaped tensors are errors that name the tensor.

use std::collections::BTreeSet;
use std::path::Path;

use super::arch::{self, Input, Names, Role, TensorSpec, may_skip};
use crate::backend::{Backend, Form, WeightData};
use crate::baseline::{self, Rtn};
use crate::checkpoint::{Assets, Checkpoint};
use crate::config::ModelConfig;
use crate::format::{Reader, fnv1a};
use crate::gguf;
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
    /// A Hugging Face folder, unquantized or of GPTQ or AWQ, a GGUF file, or a .fasq file.
    pub fn open(path: &Path) -> Result<Self> {
        if gguf::is_gguf(path) {
            return gguf::open(path).map(Self::Checkpoint);
        }
        if !path.is_dir() {
            return Reader::open(path).map(Self::File);
        }
        let mut checkpoint = Checkpoint::open(path)?;
        baseline::unpack(&mut checkpoint, path)?;
        Ok(Self::Checkpoint(checkpoint))
    }

    /// What can be quantized: a Hugging Face folder as it is, or a GGUF file.
    pub fn unquantized(path: &Path) -> Result<Self> {
        let checkpoint = if gguf::is_gguf(path) { gguf::open(path)? } else { Checkpoint::open(path)? };
        Ok(Self::Checkpoint(checkpoint))
    }

    /// Rounds the linear layers of an unquantized checkpoint.
    pub fn round(&mut self, rtn: Rtn) -> Result<()> {
        let Source::Checkpoint(checkpoint) = self else {
            return Err(Error::invalid(
                format!("baseline {rtn}"),
                "it needs the folder of an unquantized model",
            ));
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

    /// A hash of config and size, to tell models apart.
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

    /// Names of the tensors; a quantized one has the name of its original.
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

    /// A matrix's form; reads headers only.
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

/// Loads the tensors of a source onto a backend: each by name, in the shape that [`arch::tensors`] gives it.
pub struct Tensors<'a, B: Backend> {
    source: &'a Source,
    backend: &'a B,
    pub names: Names,
    present: BTreeSet<&'a str>,
    specs: Vec<TensorSpec>,
    taken: BTreeSet<String>,
    /// Of all tensors taken so far, as stored.
    pub bytes: u64,
}

impl<'a, B: Backend> Tensors<'a, B> {
    pub fn new(source: &'a Source, backend: &'a B) -> Self {
        let present: BTreeSet<_> = source.names().collect();
        let (config, has) = (source.config(), |name: &str| present.contains(name));
        let (names, specs) = (Names::of(&has), arch::tensors(config, &has));
        Self { source, backend, names, present, specs, taken: BTreeSet::new(), bytes: 0 }
    }

    pub fn backend(&self) -> &'a B {
        self.backend
    }

    /// Names of the weights that multiply `input`, in the order in which their outputs are stacked.
    pub fn weights_of(&self, input: Input) -> Vec<String> {
        self.specs.iter().filter(|spec| spec.input == Some(input)).map(|spec| spec.name.clone()).collect()
    }

    /// Columns of each input of a block.
    pub fn input_cols(&self, layer: usize) -> [usize; Input::PER_LAYER] {
        let mut cols = [0; Input::PER_LAYER];
        for spec in &self.specs {
            if let Some(input) = spec.input.filter(|input| input.layer == layer) {
                cols[input.at] = spec.shape[1];
            }
        }
        cols
    }

    /// Marks a tensor as taken; returns the shape that it must have.
    fn take(&mut self, name: &str) -> Result<Vec<usize>> {
        let Some(spec) = self.specs.iter().find(|spec| spec.name == name) else {
            return Err(Error::invalid(format!("tensor {name}"), "not part of this model"));
        };
        if !self.present.contains(name) {
            return Err(Error::invalid(format!("tensor {name}"), "missing from the model"));
        }
        self.taken.insert(name.to_owned());
        Ok(spec.shape.clone())
    }

    /// A weight `[out, in]`.
    pub fn weight(&mut self, name: &str) -> Result<WeightData<'a>> {
        let shape = self.take(name)?;
        let weight = self.source.weight(name)?;
        let (rows, cols) = weight.shape();
        check_shape(name, &shape, &[rows, cols])?;
        self.bytes += weight.form().bytes();
        Ok(weight)
    }

    /// A small dense tensor, as f32.
    pub fn values(&mut self, name: &str) -> Result<Vec<f32>> {
        let shape = self.take(name)?;
        let tensor = self.source.tensor(name)?;
        check_shape(name, &shape, &tensor.shape)?;
        self.bytes += tensor.bytes.len() as u64;
        let values = tensor.to_f32();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                Err(Error::mismatch(format!("tensor {name}, element {at}"), "a finite number", values[at]))
            }
        }
    }

    /// The bias of the linear layer whose weight is called `weight`; empty if it has none.
    pub fn bias(&mut self, weight: &str) -> Result<Vec<f32>> {
        let name = weight.strip_suffix(".weight").map(|part| format!("{part}.bias"));
        match name.filter(|name| self.specs.iter().any(|spec| spec.name == *name)) {
            Some(name) => self.values(&name),
            None => Ok(Vec::new()),
        }
    }

    /// [`Tensors::values`], uploaded.
    pub fn buffer(&mut self, name: &str) -> Result<B::Buffer> {
        let values = self.values(name)?;
        self.backend.upload(bytemuck::cast_slice(&values))
    }

    /// [`Tensors::buffer`] of a block's tensor, by the end of its name.
    pub fn block_buffer(&mut self, layer: usize, part: &str) -> Result<B::Buffer> {
        self.buffer(&self.names.layer(layer, part))
    }

    /// Whether a tensor is a bias of zeros, which AutoGPTQ writes for every layer: it changes nothing.
    fn is_zero_bias(&self, name: &str) -> bool {
        let values = || self.source.tensor(name).map(|tensor| tensor.to_f32());
        name.ends_with(".bias") && values().is_ok_and(|values| values.iter().all(|value| *value == 0.0))
    }

    /// Bytes of all tensors taken; fails if the source has another that this family does not ignore.
    pub fn finish(self) -> Result<u64> {
        let unused: Vec<&&str> = self
            .present
            .iter()
            .filter(|name| !self.taken.contains(**name) && !may_skip(name))
            .filter(|name| !self.is_zero_bias(name))
            .collect();
        match unused.first() {
            None => Ok(self.bytes),
            Some(first) => Err(Error::invalid(
                format!("tensor {first}"),
                format!(
                    "not part of this model ({} such tensor{})",
                    unused.len(),
                    if unused.len() == 1 { "" } else { "s" }
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
