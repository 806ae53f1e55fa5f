//! A backend without a device: it runs nothing and keeps its plans as text.

use std::cell::RefCell;

use super::{Backend, Key, WeightData, unique};
use crate::ops::{Matrix, Op, Operand};
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

/// So many words, which are nowhere.
pub struct Buffer {
    id: u64,
    words: usize,
}

impl Operand for Buffer {
    fn id(&self) -> u64 {
        self.id
    }

    fn elements(&self) -> usize {
        self.words
    }
}

/// The shapes of a weight.
pub struct Weight {
    id: u64,
    parts: Vec<Form>,
}

impl Matrix for Weight {
    fn id(&self) -> u64 {
        self.id
    }

    fn parts(&self) -> &[Form] {
        &self.parts
    }
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
        Ok(Buffer { id: unique(), words })
    }

    fn write(&self, buffer: &Buffer, words: &[u32]) -> Result<()> {
        if words.len() > buffer.words {
            return Err(Error::mismatch("words to write", format!("at most {}", buffer.words), words.len()));
        }
        Ok(())
    }

    /// Zeros.
    async fn read(&self, _: &Buffer, _: usize, words: usize) -> Result<Vec<u32>> {
        Ok(vec![0; words])
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Weight> {
        let forms: Vec<Form> = blocks.iter().map(WeightData::form).collect();
        Ok(Weight { id: unique(), parts: (self.stacks)(&forms) })
    }

    fn run(&self, ops: &[Op<'_, Buffer, Weight>], _: Option<Key>) -> Result<()> {
        self.text.borrow_mut().push_str(&(self.planner)(ops)?);
        Ok(())
    }
}
