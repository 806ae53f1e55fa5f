//! [`Budget`]: which choice each item takes so that all together fit a number of bytes and lose least.

/// What an item would cost and lose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    pub bytes: u64,
    pub loss: f64,
}

/// Cells that the bytes are counted in: each item's bytes are rounded up to a cell, so that a few hundred items leave a
/// thousandth of the budget to the filling that follows.
const CELLS: u64 = 1 << 17;

/// The least losses for every budget up to a largest one: the knapsack problem with one choice from each item, solved
/// by dynamic programming over cells of bytes, exactly where a cell is a byte.
#[derive(Debug)]
pub struct Budget {
    items: Vec<Vec<Choice>>,
    /// Bytes of a cell.
    unit: u64,
    /// For each item and number of cells for it and the items before: its choice, or [`NONE`] where they do not fit.
    best: Vec<Vec<u8>>,
}

const NONE: u8 = u8::MAX;

impl Budget {
    /// For budgets up to `largest` bytes, and items of up to 255 choices.
    pub fn new(items: Vec<Vec<Choice>>, largest: u64) -> Self {
        assert!(items.iter().all(|choices| choices.len() < usize::from(NONE)), "too many choices");
        let unit = largest.div_ceil(CELLS).max(1);
        let cells = (largest / unit) as usize + 1;
        // Least loss of the items so far in so many cells.
        let mut losses = vec![0f64; cells];
        let mut best = Vec::with_capacity(items.len());
        for choices in &items {
            let (mut next, mut taken) = (vec![f64::INFINITY; cells], vec![NONE; cells]);
            for (i, choice) in (0..).zip(choices) {
                let width = choice.bytes.div_ceil(unit) as usize;
                let wider = next.iter_mut().zip(&mut taken).skip(width);
                for ((next, taken), before) in wider.zip(&losses) {
                    let loss = before + choice.loss;
                    if loss < *next {
                        (*next, *taken) = (loss, i);
                    }
                }
            }
            losses = next;
            best.push(taken);
        }
        Self { items, unit, best }
    }

    /// Each item's choice for a budget of `bytes`, which the largest one bounds; `None` where nothing fits.
    pub fn choose(&self, bytes: u64) -> Option<Vec<usize>> {
        let mut chosen = self.trace(bytes).unwrap_or_else(|| self.smallest());
        if self.cost(&chosen).bytes > bytes {
            return None;
        }
        self.fill(&mut chosen, bytes, |_, _| true);
        Some(chosen)
    }

    /// Each item's choice of fewest bytes.
    pub fn smallest(&self) -> Vec<usize> {
        let smallest = |choices: &Vec<Choice>| (0..choices.len()).min_by_key(|&i| choices[i].bytes);
        self.items.iter().map(|choices| smallest(choices).unwrap_or(0)).collect()
    }

    /// The choices that the cells tell, if they fit when each is rounded up.
    fn trace(&self, bytes: u64) -> Option<Vec<usize>> {
        let mut cells = (bytes / self.unit) as usize;
        let mut chosen = vec![0; self.items.len()];
        for (i, best) in self.best.iter().enumerate().rev() {
            cells = cells.min(best.len() - 1);
            chosen[i] = Some(best[cells]).filter(|&choice| choice != NONE)?.into();
            cells -= self.items[i][chosen[i]].bytes.div_ceil(self.unit) as usize;
        }
        Some(chosen)
    }

    /// Spends what is left of `bytes`, each time where it lowers the loss most, on choices that are `allowed` for an
    /// item.
    pub fn fill(&self, chosen: &mut [usize], bytes: u64, allowed: impl Fn(usize, usize) -> bool) {
        loop {
            let left = bytes.saturating_sub(self.cost(chosen).bytes);
            let allowed = &allowed;
            let better = self.items.iter().zip(&*chosen).enumerate().flat_map(|(item, (choices, &now))| {
                let now = choices[now];
                let fits = move |choice: &Choice| choice.bytes <= now.bytes + left && choice.loss < now.loss;
                let gains =
                    choices.iter().enumerate().filter(move |(i, choice)| allowed(item, *i) && fits(choice));
                gains.map(move |(i, choice)| (now.loss - choice.loss, item, i))
            });
            match better.max_by(|a, b| a.0.total_cmp(&b.0)) {
                Some((_, item, choice)) => chosen[item] = choice,
                None => return,
            }
        }
    }

    /// What the choices cost and lose together.
    pub fn cost(&self, chosen: &[usize]) -> Choice {
        let chosen = self.items.iter().zip(chosen).map(|(choices, &i)| choices[i]);
        chosen.fold(Choice { bytes: 0, loss: 0.0 }, |sum, choice| Choice {
            bytes: sum.bytes + choice.bytes,
            loss: sum.loss + choice.loss,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By trying every combination.
    fn exhaustive(items: &[Vec<Choice>], bytes: u64) -> Option<f64> {
        let mut combinations = vec![Choice { bytes: 0, loss: 0.0 }];
        for choices in items {
            combinations = combinations
                .iter()
                .flat_map(|a| {
                    choices.iter().map(|b| Choice { bytes: a.bytes + b.bytes, loss: a.loss + b.loss })
                })
                .collect();
        }
        combinations.iter().filter(|c| c.bytes <= bytes).map(|c| c.loss).min_by(f64::total_cmp)
    }

    proptest! {
        #[test]
        fn small_cases_equal_exhaustive_search(
            items in prop::collection::vec(prop::collection::vec((1u64..500, 0u32..1000), 1..6), 1..6),
            budgets in prop::collection::vec(0u64..3000, 1..5),
        ) {
            let choice = |&(bytes, loss): &(u64, u32)| Choice { bytes, loss: f64::from(loss) };
            let items: Vec<Vec<Choice>> = items.iter().map(|item| item.iter().map(choice).collect()).collect();
            let budget = Budget::new(items.clone(), *budgets.iter().max().unwrap());
            for bytes in budgets {
                let chosen = budget.choose(bytes);
                if let Some(chosen) = &chosen {
                    prop_assert!(budget.cost(chosen).bytes <= bytes);
                }
                prop_assert_eq!(chosen.map(|chosen| budget.cost(&chosen).loss), exhaustive(&items, bytes));
            }
        }
    }

    #[test]
    fn a_large_budget_is_spent_to_a_thousandth() {
        // 200 items of 1 to 20 MB at 2 to 8 bits, loss falling by 4 a bit.
        let item = |n: u64| {
            (2..=8u32).map(move |bits| Choice {
                bytes: (1 + n % 20) * 1_000_003 / 8 * u64::from(bits),
                loss: (1 + n % 7) as f64 * 0.25f64.powi(bits as i32),
            })
        };
        let budget = Budget::new((0..200).map(|n| item(n).collect()).collect(), 2_000_000_000);
        for bytes in [700_000_000, 1_000_000_001, 1_500_000_000] {
            let cost = budget.cost(&budget.choose(bytes).unwrap());
            assert!(cost.bytes <= bytes && cost.bytes as f64 >= 0.999 * bytes as f64, "{cost:?} of {bytes}");
        }
        assert!(budget.choose(100_000_000).is_none());
        let smallest = budget.cost(&budget.smallest()).bytes;
        assert!(budget.choose(smallest).is_some() && budget.choose(smallest - 1).is_none());
    }
}
