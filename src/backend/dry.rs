//! A backend without a device: it runs nothing and keeps its plans as text.

use std::cell::RefCell;

use super::{Backend, Key, WeightData, unique};
use crate::ops::{Op, Operand};
pub use crate::plan::dry::{Buffer, Weight};
use crate::tensor::Form;
use crate::{Error, Result};

/// The text of a list's plan, by some backend's planner.
pub type Planner = dyn Fn(&[Op<'_, Buffer, Weight>]) -> Result<String>;

/// Plans what it is given by another backend's planner.
pub struct Dry {
    planner: Box<Planner>,
    text: RefCell<String>,
    stacks: fn(&[Form]) -> Vec<Form>,
}

impl Dry {
    /// `stacks` says as which parts the other backend holds the matrices of a weight.
    pub fn new(planner: Box<Planner>, stacks: fn(&[Form]) -> Vec<Form>) -> Self {
        Self { planner, text: RefCell::default(), stacks }
    }

    /// The plans of all lists that were submitted since the last call.
    pub fn take_text(&self) -> String {
        self.text.take()
    }
}

impl Backend for &Dry {
    type Buffer = Buffer;
    type Weight = Weight;

    fn describe(&self) -> String {
        "dry, plans only".into()
    }

    fn alloc(&self, words: usize) -> Result<Buffer> {
        Ok(Buffer::new(unique(), words))
    }

    fn write(&self, buffer: &Buffer, words: &[u32]) -> Result<()> {
        if words.len() > buffer.elements() {
            return Err(Error::mismatch(
                "words to write",
                format!("at most {}", buffer.elements()),
                words.len(),
            ));
        }
        Ok(())
    }

    /// Zeros.
    async fn read(&self, _: &Buffer, _: usize, words: usize) -> Result<Vec<u32>> {
        Ok(vec![0; words])
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        let forms: Vec<Form> = blocks.iter().map(WeightData::form).collect();
        Ok(Weight::new(unique(), (self.stacks)(&forms)))
    }

    fn run(&self, ops: &[Op<'_, Buffer, Weight>], _: Option<Key>) -> Result<()> {
        self.text.borrow_mut().push_str(&(self.planner)(ops)?);
        Ok(())
    }
}
