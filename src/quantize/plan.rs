//! [`Plan`]: how each tensor of a model is stored.

use std::str::FromStr;

use wildmatch::WildMatch;

use crate::baseline;
use crate::checkpoint::Checkpoint;
use crate::format::{Content, Layout};
use crate::model::arch::{self, Input, Role};
use crate::pq::PqSpec;
use crate::tensor::{Dtype, Stored};
use crate::{Error, Result};

/// What becomes of a weight matrix: written `f16`, or as a [`PqSpec`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// Dense in 16 bits: F32 is converted to F16, F16 and BF16 stay.
    Dense,
    Pq(PqSpec),
}

impl Target {
    /// How it is stored, of elements that the checkpoint has as `source`, for a tensor of this shape.
    fn stored(self, source: Dtype, shape: &[usize]) -> Stored {
        match (self, source) {
            (Target::Dense, Dtype::F32) => Stored::Dense(Dtype::F16),
            (Target::Dense, dtype) => Stored::Dense(dtype),
            (Target::Pq(spec), _) => Stored::Pq(spec.for_cols(shape[1])),
        }
    }

    /// Bytes in the file of an item that becomes this, without a universal table.
    pub fn bytes(self, item: &Item) -> usize {
        stored_bytes(self.stored(item.source, &item.shape), &item.shape)
    }
}

fn stored_bytes(stored: Stored, shape: &[usize]) -> usize {
    match stored {
        Stored::Pq(spec) => spec.matrix_bytes(shape[0], shape[1]),
        Stored::Dense(dtype) => shape.iter().product::<usize>() * dtype.size(),
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "f16" { Ok(Target::Dense) } else { text.parse().map(Target::Pq) }
    }
}

/// Which matrices get which target.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    pub linear: Target,
    pub embed: Target,
    /// Of a head of its own; a tied one is the embedding.
    pub head: Target,
    /// Patterns of tensor names with `*` and `?`, of which the last that matches overrules the rest.
    pub tensors: Vec<(String, Target)>,
}

impl Rules {
    /// The FASQ paper's layout: a codebook for each subspace of raw weights, embedding and head in 16 bits.
    pub fn paper() -> Self {
        Self { linear: Target::Pq(PqSpec::PAPER), embed: Target::Dense, head: Target::Dense, tensors: vec![] }
    }

    /// Everything by universal codebooks after rotation: 4 bits, and 5 for embedding and head, which at 4 would lose
    /// nearly half as much again as all linear layers together.
    pub fn universal() -> Self {
        let (four, five) = (PqSpec::UNIVERSAL, PqSpec { k: 1024, ..PqSpec::UNIVERSAL });
        Self { linear: Target::Pq(four), embed: Target::Pq(five), head: Target::Pq(five), tensors: vec![] }
    }

    /// Whether a pattern names this tensor.
    pub fn names(&self, tensor: &str) -> bool {
        self.tensors.iter().any(|(pattern, _)| WildMatch::new(pattern).matches(tensor))
    }
}

/// How a model's tensors are stored, in the model's order.
#[derive(Clone, Debug)]
pub struct Plan {
    /// That it was made by.
    pub rules: Rules,
    pub items: Vec<Item>,
    /// Of the file that it makes of the checkpoint.
    pub layout: Layout,
}

/// A tensor of the plan.
#[derive(Clone, Debug)]
pub struct Item {
    pub name: String,
    pub shape: Vec<usize>,
    pub role: Role,
    /// What it multiplies, for matrices with [`Role::Linear`].
    pub input: Option<Input>,
    /// As the checkpoint has it.
    pub source: Dtype,
    pub stored: Stored,
}

impl Item {
    /// Weights of the tensor.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes in the file, without a universal table.
    pub fn bytes(&self) -> usize {
        stored_bytes(self.stored, &self.shape)
    }

    /// How it is stored, for people.
    pub fn spec(&self) -> String {
        match self.stored {
            Stored::Pq(spec) => spec.to_string(),
            Stored::Dense(dtype) => format!("{dtype:?}").to_lowercase(),
        }
    }
}

impl Plan {
    /// Applies the rules to the tensors that the model uses.
    ///
    /// # Errors
    /// A checkpoint that is quantized already; a tensor that is missing or has another shape than the config says; a
    /// pattern that no matrix matches.
    pub fn new(checkpoint: &Checkpoint, rules: &Rules) -> Result<Self> {
        if baseline::is_packed(checkpoint) {
            return Err(Error::mismatch("the checkpoint", "unquantized matrices", "those of GPTQ or AWQ"));
        }
        let items = Self::items(checkpoint, rules)?;
        let layout = Layout::new(&contents(&items), checkpoint.assets())?;
        Ok(Self { rules: rules.clone(), items, layout })
    }

    /// The plan of other rules for the same checkpoint, without compressing its texts again.
    pub fn with_rules(&self, checkpoint: &Checkpoint, rules: Rules) -> Result<Self> {
        let items = Self::items(checkpoint, &rules)?;
        let layout = self.layout.with_contents(&contents(&items))?;
        Ok(Self { rules, items, layout })
    }

    fn items(checkpoint: &Checkpoint, rules: &Rules) -> Result<Vec<Item>> {
        let tensors = arch::tensors(checkpoint.config(), &|name| checkpoint.contains(name));
        let patterns: Vec<_> =
            rules.tensors.iter().map(|(pattern, target)| (WildMatch::new(pattern), *target)).collect();
        for (pattern, _) in &patterns {
            if !tensors.iter().any(|t| t.role != Role::Keep && pattern.matches(&t.name)) {
                return Err(Error::invalid(
                    format!("--tensor {pattern}"),
                    "no weight matrix has such a name",
                ));
            }
        }
        let mut items = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let view = checkpoint.tensor(&tensor.name)?;
            if view.shape != tensor.shape {
                let expected = format!("{:?} by config.json", tensor.shape);
                let what = format!("tensor {}", tensor.name);
                return Err(Error::mismatch(what, expected, format!("{:?}", view.shape)));
            }
            let by_role = match tensor.role {
                Role::Keep => None,
                Role::Linear => Some(rules.linear),
                Role::Embed => Some(rules.embed),
                Role::Head => Some(rules.head),
            };
            let overruled = patterns.iter().rev().find(|(pattern, _)| pattern.matches(&tensor.name));
            let target = by_role.map(|target| overruled.map_or(target, |(_, target)| *target));
            let unchanged = Stored::Dense(view.dtype);
            let stored = target.map_or(unchanged, |target| target.stored(view.dtype, &tensor.shape));
            items.push(Item {
                name: tensor.name,
                shape: tensor.shape,
                role: tensor.role,
                input: tensor.input.filter(|_| tensor.role == Role::Linear),
                source: view.dtype,
                stored,
            });
        }
        Ok(items)
    }

    /// The matrix that makes the logits: the head, or the embedding where it serves as one.
    pub fn head(&self) -> Option<&Item> {
        let with = |role: Role| self.items.iter().find(|item| item.role == role);
        with(Role::Head).or_else(|| with(Role::Embed))
    }

    /// Weights that will be quantized.
    pub fn quantized_elements(&self) -> usize {
        let quantized = self.items.iter().filter(|item| matches!(item.stored, Stored::Pq(_)));
        quantized.map(Item::elements).sum()
    }

    /// Bytes of the same tensors in FP16: what sizes are compared with.
    pub fn fp16_bytes(&self) -> usize {
        self.items.iter().map(|item| 2 * item.elements()).sum()
    }
}

/// The items as the file's layout is told of them.
fn contents(items: &[Item]) -> Vec<Content> {
    let content =
        |item: &Item| Content { name: item.name.clone(), shape: item.shape.clone(), stored: item.stored };
    items.iter().map(content).collect()
}
