//! Recorded launches: plain data, with the memory that they name.

use std::hash::{Hash, Hasher};
use std::rc::Rc;

use cudarc::cublas::sys::cudaDataType;

use super::device::Function;
use super::kernels::Matvec;
use super::memory::{Memory, address};

/// One argument of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arg {
    Address(u64),
    Word(u32),
    Params([u32; 16]),
}

impl Arg {
    /// A struct's words, at most 16.
    pub fn params(words: &[u32]) -> Self {
        let mut all = [0; 16];
        all[..words.len()].copy_from_slice(words);
        Self::Params(all)
    }
}

/// An address as the words of a struct among the arguments.
pub fn words_of(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}

/// A kernel with its arguments, recorded.
#[derive(Clone)]
pub struct Kernel {
    pub function: Rc<Function>,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    pub args: Vec<Arg>,
    /// Of pq_matvec_shared.
    pub matvec: Option<Rc<Matvec>>,
    /// All blocks must be on the device together.
    pub resident: bool,
}

impl PartialEq for Kernel {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.function, &other.function)
            && (self.grid, self.block, self.shared) == (other.grid, other.block, other.shared)
            && self.args == other.args
    }
}

impl Eq for Kernel {}

impl Hash for Kernel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (Rc::as_ptr(&self.function), self.grid, self.block, self.shared, &self.args).hash(state);
    }
}

impl Kernel {
    /// Argument `at`, an address or a number.
    pub fn number(&self, at: usize) -> u64 {
        match self.args.get(at) {
            Some(Arg::Address(value)) => *value,
            Some(Arg::Word(value)) => u64::from(*value),
            _ => 0,
        }
    }

    /// The parameter struct at argument `at`.
    pub fn params(&self, at: usize) -> [u32; 16] {
        match self.args.get(at) {
            Some(Arg::Params(words)) => *words,
            _ => [0; 16],
        }
    }
}

/// A kernel with its arguments and the memory that they name.
pub struct Launch {
    kernel: Kernel,
    keep: Vec<Memory>,
}

impl Launch {
    pub fn new(function: Rc<Function>, grid: [u32; 3], block: u32, shared: u32) -> Self {
        let args = Vec::with_capacity(16);
        let kernel = Kernel { function, grid, block, shared, args, matvec: None, resident: false };
        Self { kernel, keep: Vec::with_capacity(8) }
    }

    /// Says that this is a launch of pq_matvec_shared.
    pub fn matvec(mut self, matvec: Matvec) -> Self {
        self.kernel.matvec = Some(Rc::new(matvec));
        self
    }

    pub fn memory(self, memory: &Memory) -> Self {
        self.memory_at(memory, 0)
    }

    /// `memory` from byte `offset` on.
    pub fn memory_at(mut self, memory: &Memory, offset: u64) -> Self {
        self.kernel.args.push(Arg::Address(address(memory) + offset));
        self.keep.push(memory.clone());
        self
    }

    /// A pointer that is null where there is nothing.
    pub fn optional(mut self, memory: Option<&Memory>, offset: u64) -> Self {
        match memory {
            Some(memory) => self.memory_at(memory, offset),
            None => {
                self.kernel.args.push(Arg::Address(0));
                self
            }
        }
    }

    pub fn word(mut self, word: u32) -> Self {
        self.kernel.args.push(Arg::Word(word));
        self
    }

    /// One struct of at most 64 bytes: addresses, null where there is nothing, and words.
    pub fn record(mut self, memory: &[Option<&Memory>], words: &[u32]) -> Self {
        let mut all = Vec::with_capacity(16);
        for memory in memory {
            let at = memory.map_or(0, address);
            all.extend(words_of(at));
            self.keep.extend(memory.cloned());
        }
        all.extend(words);
        self.params(&all)
    }

    /// A 64-bit number.
    pub fn long(mut self, number: u64) -> Self {
        self.kernel.args.push(Arg::Address(number));
        self
    }

    /// A parameter struct's words, at most 16.
    pub fn params(mut self, words: &[u32]) -> Self {
        self.kernel.args.push(Arg::params(words));
        self
    }
}

/// `y [n, m] = x [n, k] W^T` for W `[m, k]`, all row-major; x and W of `dtype`, y f32.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Gemm {
    pub dtype: cudaDataType,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub w: u64,
    pub x: u64,
    pub y: u64,
    /// Elements from one row of y to the next.
    pub y_stride: i32,
    /// Whether y is added to.
    pub accumulate: bool,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Work {
    Kernel(Kernel),
    Gemm(Gemm),
}

/// Work recorded and not yet submitted, with the memory that it uses.
#[derive(Default)]
pub struct Commands {
    pub(super) work: Vec<Work>,
    memory: Vec<Memory>,
}

impl Commands {
    pub fn launch(&mut self, launch: Launch) {
        self.work.push(Work::Kernel(launch.kernel));
        self.memory.extend(launch.keep);
    }

    pub fn gemm(&mut self, gemm: Gemm, keep: [&Memory; 3]) {
        self.work.push(Work::Gemm(gemm));
        self.memory.extend(keep.map(Memory::clone));
    }
}
