//! [`Size`]: how large a file should become, and the [`Plan`] that makes it so at the least loss.

use std::fmt;
use std::str::FromStr;

use super::budget::{Budget, Choice};
use super::plan::{Item, Plan, Target};
use super::sensitivity::{DISTORTIONS, Sensitivities, distortion};
use crate::checkpoint::Checkpoint;
use crate::model::arch::Role;
use crate::pq::PqSpec;
use crate::tensor::Stored;
use crate::{Error, Result};

/// Tries to find bytes for the file's header and tables, which depend on the choice that they are left out of.
const ROUNDS: usize = 16;

/// A file's size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    Bytes(u64),
    /// Of the FP16 size.
    Percent(f64),
    /// All bits of the file over all weights of the model.
    BitsPerWeight(f64),
}

impl Size {
    /// In bytes, for the model of a plan.
    pub fn bytes(self, plan: &Plan) -> u64 {
        match self {
            Size::Bytes(bytes) => bytes,
            Size::Percent(percent) => (plan.fp16_bytes() as f64 * percent / 100.0) as u64,
            Size::BitsPerWeight(bits) => (plan.fp16_bytes() as f64 * bits / 16.0) as u64,
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Size::Bytes(bytes) => write!(f, "{:.2} MB", *bytes as f64 / 1e6),
            Size::Percent(percent) => write!(f, "{percent} %"),
            Size::BitsPerWeight(bits) => write!(f, "{bits} bits a weight"),
        }
    }
}

impl FromStr for Size {
    type Err = Error;

    /// `31%`, `5.5GB`, `17MB`, `700kB`, `17000000`; GiB, MiB and KiB are powers of 1024.
    fn from_str(text: &str) -> Result<Self> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let number = number.parse::<f64>().ok().filter(|n| n.is_finite() && *n > 0.0);
        let unit = match unit.trim() {
            "%" => None,
            "" | "B" => Some(1.0),
            "kB" | "KB" => Some(1e3),
            "MB" => Some(1e6),
            "GB" => Some(1e9),
            "KiB" => Some(1024f64),
            "MiB" => Some(1024f64.powi(2)),
            "GiB" => Some(1024f64.powi(3)),
            _ => Some(f64::NAN),
        };
        match (number, unit) {
            (Some(percent), None) => Ok(Size::Percent(percent)),
            (Some(number), Some(unit)) if (number * unit).is_finite() => {
                Ok(Size::Bytes((number * unit) as u64))
            }
            _ => Err(Error::mismatch("size", "a size like 31%, 5.5GB or 700MB", format!("{text:?}"))),
        }
    }
}

/// A plan that meets a size, and its estimated loss.
#[derive(Clone, Debug)]
pub struct Fitted {
    pub plan: Plan,
    /// See [`Sensitivities`].
    pub loss: f64,
}

/// What a size is spent on.
pub struct Fitter<'a> {
    checkpoint: &'a Checkpoint,
    /// The plan of the rules as they are.
    plan: &'a Plan,
    /// The items of the plan whose spec is to be chosen.
    free: Vec<Free<'a>>,
    /// One spec for all that is free.
    uniform: bool,
}

/// A matrix whose spec is to be chosen.
struct Free<'a> {
    item: &'a Item,
    sensitivity: f64,
    /// What it may become.
    targets: Vec<Target>,
}

impl<'a> Fitter<'a> {
    /// Chooses the specs of all matrices that the plan quantizes and that no pattern of its rules names, each for
    /// itself or, if `uniform`, one for all. What else the rules' specs say (scope, scale, rotation) stays.
    ///
    /// # Errors
    /// A matrix whose sensitivity is not known.
    pub fn new(
        checkpoint: &'a Checkpoint,
        plan: &'a Plan,
        sensitivities: &Sensitivities,
        uniform: bool,
    ) -> Result<Self> {
        let mut free = vec![];
        for item in plan.items.iter().filter(|item| !plan.rules.names(&item.name)) {
            if let Some(targets) = targets(item, uniform) {
                free.push(Free { item, sensitivity: sensitivities.of(item)?, targets });
            }
        }
        Ok(Self { checkpoint, plan, free, uniform })
    }

    /// The plan of least estimated loss for each size, which the file does not exceed.
    ///
    /// # Errors
    /// A size that is below the smallest possible.
    pub fn fit(&self, sizes: &[Size]) -> Result<Vec<Fitted>> {
        let sizes: Vec<u64> = sizes.iter().map(|size| size.bytes(self.plan)).collect();
        let budget = Budget::new(self.choices(), sizes.iter().copied().max().unwrap_or(0));
        sizes.into_iter().map(|size| self.fit_one(&budget, size)).collect()
    }

    /// Bytes that are not a free item's, tables above all, depend on the choice, and the choice on what they leave.
    fn fit_one(&self, budget: &Budget, size: u64) -> Result<Fitted> {
        let smallest = self.fitted(budget, &budget.smallest())?;
        let mut rest = self.rest(&smallest, budget, &budget.smallest());
        let least = smallest.plan.layout.file_len();
        let mut best = Some(smallest).filter(|_| least <= size);
        for _ in 0..ROUNDS {
            let Some(mut chosen) = size.checked_sub(rest).and_then(|left| budget.choose(left)) else { break };
            let fitted = self.fitted(budget, &chosen)?;
            let (now, len) = (self.rest(&fitted, budget, &chosen), fitted.plan.layout.file_len());
            if len > size {
                rest = now.max(rest + (len - size));
                continue;
            }
            // What is left goes to specs whose tables are paid for.
            let used: Vec<Target> = chosen.iter().enumerate().map(|(i, &c)| self.target(i, c)).collect();
            budget.fill(&mut chosen, size - now, |i, c| used.contains(&self.target(i, c)));
            let fitted = self.fitted(budget, &chosen)?;
            if fitted.plan.layout.file_len() <= size && best.as_ref().is_none_or(|b| fitted.loss < b.loss) {
                best = Some(fitted);
            }
            break;
        }
        best.ok_or_else(|| {
            let expected =
                format!("at least {}, the smallest that this model can become", Size::Bytes(least));
            Error::mismatch("--size", expected, Size::Bytes(size))
        })
    }

    /// Bytes of the file that no free item stands for.
    fn rest(&self, fitted: &Fitted, budget: &Budget, chosen: &[usize]) -> u64 {
        fitted.plan.layout.file_len() - budget.cost(chosen).bytes
    }

    /// What the knapsack's item becomes by its choice.
    fn target(&self, item: usize, choice: usize) -> Target {
        self.free[item].targets[choice]
    }

    /// The items of the knapsack: each free matrix, or all of them together.
    fn choices(&self) -> Vec<Vec<Choice>> {
        let each = self.free.iter().map(|Free { item, sensitivity, targets }| {
            let choice = |target: &Target| Choice {
                bytes: target.bytes(item) as u64,
                loss: match target {
                    Target::Pq(spec) => sensitivity * distortion(spec),
                    Target::Dense => 0.0,
                },
            };
            targets.iter().map(choice).collect::<Vec<_>>()
        });
        if !self.uniform {
            return each.collect();
        }
        let add = |sums: Vec<Choice>, one: Vec<Choice>| {
            let pairs = sums.iter().zip(&one);
            pairs.map(|(a, b)| Choice { bytes: a.bytes + b.bytes, loss: a.loss + b.loss }).collect()
        };
        each.reduce(add).into_iter().collect()
    }

    fn fitted(&self, budget: &Budget, chosen: &[usize]) -> Result<Fitted> {
        let choice = |i: usize| if self.uniform { chosen[0] } else { chosen[i] };
        let specs =
            self.free.iter().enumerate().map(|(i, free)| (free.item.name.clone(), free.targets[choice(i)]));
        let mut rules = self.plan.rules.clone();
        rules.tensors = specs.chain(rules.tensors).collect();
        let plan = self.plan.with_rules(self.checkpoint, rules)?;
        Ok(Fitted { plan, loss: budget.cost(chosen).loss })
    }
}

/// What a matrix may become: its spec with each code, and dense unless all must be alike. `None` where it stays dense.
fn targets(item: &Item, uniform: bool) -> Option<Vec<Target>> {
    let base = match (item.stored, item.role) {
        (Stored::Pq(spec), Role::Linear | Role::Embed | Role::Head) => spec,
        _ => return None,
    };
    let coded = DISTORTIONS.map(|((d, k), _)| Target::Pq(PqSpec { d, k, ..base }));
    let dense = (!uniform).then_some(Target::Dense);
    Some(coded.into_iter().chain(dense).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, size) in [
            ("31%", Size::Percent(31.0)),
            ("5.5GB", Size::Bytes(5_500_000_000)),
            ("17 MB", Size::Bytes(17_000_000)),
            ("700kB", Size::Bytes(700_000)),
            ("2MiB", Size::Bytes(2 << 20)),
            ("12345", Size::Bytes(12_345)),
        ] {
            assert_eq!(text.parse::<Size>().unwrap(), size, "{text}");
        }
        for text in ["", "%", "0%", "-3MB", "5 apples", "nan", "1e9", "1.2.3MB", "MB"] {
            assert!(text.parse::<Size>().is_err(), "{text:?} was taken");
        }
    }
}
