//! Random models of real shapes, for benchmarks: tensors are slices of one pool of random numbers.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use half::f16;
use rayon::prelude::*;

use super::arch::{Role, TensorSpec, tensors};
use crate::backend::{Dtype, WeightData};
use crate::checkpoint::Assets;
use crate::config::ModelConfig;
use crate::pq::{PqMatrix, PqSpec, RowScale, Scope};
use crate::tensor::{Form, Stored, TensorView};
use crate::{Error, Result};

/// How the matrices of a random model are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Storage {
    /// Linear layers; None is dense f16.
    pub linear: Option<PqSpec>,
    /// Embedding and head; None is dense f16.
    pub head: Option<PqSpec>,
}

/// Standard deviation of dense weights and row scales, as in trained models of these shapes.
const DEVIATION: f32 = 0.02;

/// Universal codebooks by (d, K).
type Tables = HashMap<(usize, usize), Arc<[f16]>>;

/// A model of random weights: stored tensors as slices of one pool, which is as large as the largest of them.
pub struct Random {
    config: ModelConfig,
    assets: Assets,
    storage: Storage,
    tensors: BTreeMap<String, TensorSpec>,
    /// f16 around 0 with deviation [`DEVIATION`].
    pool: Vec<f16>,
    /// Ones, for norms and other small tensors.
    ones: Vec<u8>,
    universal: Mutex<Tables>,
}

impl std::fmt::Debug for Random {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Random").field("config", &self.config).field("storage", &self.storage).finish()
    }
}

impl Random {
    /// A model as `config` (a config.json) describes it.
    pub fn new(config: &str, storage: Storage) -> Result<Self> {
        let assets = Assets { config: config.to_owned(), ..Assets::default() };
        let config = ModelConfig::parse(config, None)?;
        let tied = config.tied == Some(true);
        let tensors = tensors(&config, &|name| !(tied && name.ends_with("lm_head.weight")));
        let tensors: BTreeMap<_, _> = tensors.into_iter().map(|t| (t.name.clone(), t)).collect();
        let largest = tensors.values().map(|t| t.shape.iter().product::<usize>()).max().unwrap_or(0);
        let ones = 1f32.to_le_bytes().repeat(largest_kept(&tensors));
        Ok(Self { config, assets, storage, tensors, pool: pool(largest), ones, universal: Mutex::default() })
    }

    /// `count` matrices `[rows, cols]` and nothing else.
    pub fn matrices(rows: usize, cols: usize, count: usize, storage: Storage) -> Result<Self> {
        let mut random = Self::new(NO_MODEL, storage)?;
        let spec = |i| TensorSpec::new(format!("matrix_{i:03}"), &[rows, cols], Role::Linear);
        random.tensors = (0..count).map(spec).map(|spec| (spec.name.clone(), spec)).collect();
        random.pool = pool(rows * cols);
        Ok(random)
    }

    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    pub fn assets(&self) -> &Assets {
        &self.assets
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names of the weight matrices.
    pub fn matrix_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.values().filter(|t| t.role != Role::Keep).map(|t| t.name.as_str())
    }

    /// Bytes of all tensors as they would be stored.
    pub fn bytes(&self) -> u64 {
        let bytes = |t: &TensorSpec| match (self.spec(t), &t.shape[..]) {
            (Some(spec), &[rows, cols]) => spec.matrix_bytes(rows, cols),
            (_, shape) => shape.iter().product::<usize>() * if t.role == Role::Keep { 4 } else { 2 },
        };
        self.tensors.values().map(|t| bytes(t) as u64).sum()
    }

    fn spec(&self, tensor: &TensorSpec) -> Option<PqSpec> {
        match tensor.role {
            Role::Linear => self.storage.linear,
            Role::Embed | Role::Head => self.storage.head,
            Role::Keep => None,
        }
    }

    fn get(&self, name: &str) -> Result<&TensorSpec> {
        self.tensors.get(name).ok_or_else(|| Error::invalid(format!("tensor {name}"), "not in this model"))
    }

    /// A tensor as dense f16, or f32 if its role is [`Role::Keep`].
    pub fn tensor(&self, name: &str) -> Result<TensorView<'_>> {
        let tensor = self.get(name)?;
        let elements = tensor.shape.iter().product::<usize>();
        if tensor.role == Role::Keep {
            let bytes = &self.ones[..elements * 4];
            return Ok(TensorView { dtype: Dtype::F32, shape: tensor.shape.clone(), bytes });
        }
        let bytes = bytemuck::cast_slice(self.slice(name, elements));
        Ok(TensorView { dtype: Dtype::F16, shape: tensor.shape.clone(), bytes })
    }

    /// A matrix's form.
    pub fn form(&self, name: &str) -> Result<Form> {
        let tensor = self.get(name)?;
        match (self.spec(tensor), &tensor.shape[..]) {
            (Some(spec), &[rows, cols]) => Ok(Form { rows, cols, stored: Stored::Pq(spec) }),
            _ => Ok(self.tensor(name)?.weight(name)?.form()),
        }
    }

    /// A matrix.
    pub fn weight(&self, name: &str) -> Result<WeightData<'_>> {
        let tensor = self.get(name)?;
        let (Some(spec), &[rows, cols]) = (self.spec(tensor), &tensor.shape[..]) else {
            return self.tensor(name)?.weight(name);
        };
        let codes = bytemuck::cast_slice(self.slice(name, (rows * spec.row_bytes(cols)).div_ceil(2)));
        let scales = if spec.scale == RowScale::None { 0 } else { rows };
        let matrix = PqMatrix {
            spec,
            rows,
            cols,
            codes: Cow::Borrowed(&codes[..rows * spec.row_bytes(cols)]),
            codebooks: self.codebooks(name, &spec, cols),
            scales: Cow::Borrowed(self.slice(name, scales)),
        };
        matrix.checked(name).map(WeightData::Pq)
    }

    /// A universal codebook is shared by all matrices; other codebooks differ from matrix to matrix.
    fn codebooks(&self, name: &str, spec: &PqSpec, cols: usize) -> Arc<[f16]> {
        let count = spec.codebooks(cols) * spec.k * spec.d;
        if spec.scope != Scope::Universal {
            return self.slice(name, count).into();
        }
        let mut universal = self.universal.lock().unwrap_or_else(PoisonError::into_inner);
        universal.entry((spec.d, spec.k)).or_insert_with(|| self.slice("universal", count).into()).clone()
    }

    /// `count` numbers of the pool, from an offset that depends on the name.
    fn slice(&self, name: &str, count: usize) -> &[f16] {
        let hash = name.bytes().fold(0usize, |hash, b| hash.wrapping_mul(31).wrapping_add(b.into()));
        &self.pool[hash % POOL_SLACK..][..count]
    }
}

/// Elements of the pool beyond the largest tensor: the number of different offsets.
const POOL_SLACK: usize = 1 << 20;

/// The smallest configuration that parses.
const NO_MODEL: &str = r#"{
    "model_type": "llama", "vocab_size": 1, "hidden_size": 2, "intermediate_size": 1, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 1, "rms_norm_eps": 1e-5
}"#;

/// Random numbers for tensors of up to `largest` elements.
fn pool(largest: usize) -> Vec<f16> {
    let mut pool = vec![f16::ZERO; largest + POOL_SLACK];
    pool.par_chunks_mut(1 << 16).enumerate().for_each(|(seed, chunk)| {
        let mut state = seed as u64;
        for value in chunk {
            *value = f16::from_f32(DEVIATION * gaussian(&mut state));
        }
    });
    pool
}

fn largest_kept(tensors: &BTreeMap<String, TensorSpec>) -> usize {
    let kept = tensors.values().filter(|t| t.role == Role::Keep);
    kept.map(|t| t.shape.iter().product()).max().unwrap_or(0)
}

/// The sum of four uniform numbers, close enough to a Gaussian; advances `state` (SplitMix64).
fn gaussian(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let sum: f32 = (0..4).map(|i| (z >> (16 * i)) as u16 as f32 / 32768.0 - 1.0).sum();
    sum * 0.866 // each has variance 1/3
}
