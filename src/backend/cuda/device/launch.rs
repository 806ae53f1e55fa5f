//! Launches in a list, which name memory that whoever enqueues them keeps alive until then.

use cudarc::cublas::sys::cudaDataType;

use super::memory::{Memory, address};
use super::unit::Function;

/// One argument of a kernel.
pub enum Arg {
    Address(u64),
    Word(u32),
    /// A struct's words.
    Struct(Vec<u32>),
}

/// A kernel with its arguments, recorded.
pub struct Kernel {
    pub function: Function,
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    pub args: Vec<Arg>,
    /// All blocks must be on the device together.
    pub resident: bool,
}

/// A kernel's launch in the making.
pub struct Launch {
    kernel: Kernel,
    own: Option<Memory>,
}

/// A launch's grid, threads of a block and its shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
}

impl Launch {
    pub fn of(function: Function, shape: Shape) -> Self {
        Self::new(function, shape.grid, shape.threads, shape.shared)
    }

    pub fn new(function: Function, grid: [u32; 3], block: u32, shared: u32) -> Self {
        let args = Vec::with_capacity(16);
        let kernel = Kernel { function, grid, block, shared, args, resident: false };
        Self { kernel, own: None }
    }

    /// Makes it a launch whose blocks are all on the device together.
    pub fn resident(mut self) -> Self {
        self.kernel.resident = true;
        self
    }

    /// Memory that was made for this launch alone: it lives as long as the launch can be repeated.
    pub fn own(mut self, memory: Memory) -> Self {
        self = self.memory(&memory);
        self.own = Some(memory);
        self
    }

    pub fn memory(self, memory: &Memory) -> Self {
        self.memory_at(memory, 0)
    }

    /// `memory` from byte `offset` on.
    pub fn memory_at(mut self, memory: &Memory, offset: u64) -> Self {
        self.kernel.args.push(Arg::Address(address(memory) + offset));
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

    /// A 64-bit number.
    pub fn long(mut self, number: u64) -> Self {
        self.kernel.args.push(Arg::Address(number));
        self
    }

    /// The words of a struct.
    pub fn structure(mut self, words: Vec<u32>) -> Self {
        self.kernel.args.push(Arg::Struct(words));
        self
    }
}

/// `y [n, m] = x [n, k] W^T` for W `[m, k]`, all row-major; x and W of `dtype`, y f32.
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

pub enum Work {
    Kernel(Kernel),
    Gemm(Gemm),
}

/// Work that is not yet enqueued.
#[derive(Default)]
pub struct Commands {
    pub(super) work: Vec<Work>,
    /// Memory that was made for the work, and lives as long as the work can be repeated.
    pub(super) own: Vec<Memory>,
}

impl Commands {
    pub fn launch(&mut self, launch: Launch) {
        self.work.push(Work::Kernel(launch.kernel));
        self.own.extend(launch.own);
    }

    pub fn gemm(&mut self, gemm: Gemm) {
        self.work.push(Work::Gemm(gemm));
    }
}
