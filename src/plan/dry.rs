//! Buffers and weights that are nowhere, for plans that are only looked at.

use crate::ops::{Matrix, Operand};
use crate::tensor::Form;

/// So many words.
pub struct Buffer {
    id: u64,
    words: usize,
}

impl Buffer {
    /// `id` must differ from every other buffer's.
    pub fn new(id: u64, words: usize) -> Self {
        Self { id, words }
    }
}

impl Operand for Buffer {
    fn id(&self) -> u64 {
        self.id
    }

    fn elements(&self) -> usize {
        self.words
    }
}

/// The forms of stacked matrices.
pub struct Weight {
    id: u64,
    parts: Vec<Form>,
}

impl Weight {
    /// `id` must differ from every other weight's.
    pub fn new(id: u64, parts: Vec<Form>) -> Self {
        Self { id, parts }
    }
}

impl Matrix for Weight {
    fn id(&self) -> u64 {
        self.id
    }

    fn parts(&self) -> &[Form] {
        &self.parts
    }
}
