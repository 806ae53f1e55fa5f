//! Where weights come from: every tensor is taken once, with its shape; wrong, missing and unused tensors are errors.

use std::collections::BTreeSet;
use std::path::Path;

use super::arch::{self, Role, may_skip};
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
    pub present: BTreeSet<&'a str>,
    taken: BTreeSet<String>,
    /// Of all that was taken, as stored.
    pub bytes: u64,
}

impl<'a, B: Backend> Tensors<'a, B> {
    pub fn new(source: &'a Source, backend: &'a B) -> Self {
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

    /// Bytes of all that was taken; fails if a tensor is left that no model of this family may leave.
    pub fn finish(self) -> Result<u64> {
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
