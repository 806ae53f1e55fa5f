//! [`Activations`]: a text on its way through the unquantized model, all of it at one block before the next.

use std::sync::atomic::{AtomicBool, Ordering};

use pollster::block_on;

use super::hessian::Hessian;
use crate::backend::{Backend, HessianSum};
use crate::model::arch::Input;
use crate::model::{Model, Session, SessionOptions};
use crate::{Error, Result};

/// What linear layers read, block by block.
pub trait Inputs {
    /// Takes the text through the next block, and returns the Hessians of those of its inputs that are `wanted`.
    fn next_block(&mut self, wanted: [bool; Input::PER_LAYER])
    -> Result<[Option<Hessian>; Input::PER_LAYER]>;

    /// After the last block: the Hessian of what the output head reads.
    fn head(&mut self) -> Result<Hessian>;

    /// A hash of the text and of whatever else the Hessians depend on.
    fn fingerprint(&self) -> u64;
}

/// A text's residual streams.
pub struct Activations<'m, B: Backend> {
    session: Session<'m, B>,
    /// Of each sequence its tokens and, on the model's device, `[tokens, hidden]`.
    streams: Vec<(usize, B::Buffer)>,
    layer: usize,
    fingerprint: u64,
    stop: &'m AtomicBool,
}

impl<'m, B: Backend> Activations<'m, B> {
    /// The text before the first block.
    pub fn new(model: &'m Model<B>, text: &[Vec<u32>], stop: &'m AtomicBool) -> Result<Self> {
        let rows = text.iter().map(Vec::len).max().unwrap_or(0);
        let mut session = Session::new(model, SessionOptions { slots: 1, context: rows, max_rows: rows })?;
        let stream = |tokens: &Vec<u32>| Ok((tokens.len(), session.embed(tokens)?));
        let streams = text.iter().map(stream).collect::<Result<_>>()?;
        let tokens: Vec<u8> = text.iter().flatten().flat_map(|token| token.to_le_bytes()).collect();
        let fingerprint = crate::format::fnv1a(&tokens, text.len() as u64);
        Ok(Self { session, streams, layer: 0, fingerprint, stop })
    }
}

impl<B: Backend> Inputs for Activations<'_, B> {
    fn next_block(
        &mut self,
        wanted: [bool; Input::PER_LAYER],
    ) -> Result<[Option<Hessian>; Input::PER_LAYER]> {
        let backend = self.session.model().backend();
        let mut sums = [const { None }; Input::PER_LAYER];
        for (rows, stream) in &mut self.streams {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            let inputs = self.session.block(self.layer, stream, *rows)?;
            for ((sums, (x, dim)), _) in
                sums.iter_mut().zip(&inputs).zip(wanted).filter(|(_, wanted)| *wanted)
            {
                let sums = match sums {
                    Some(sums) => sums,
                    none => none.insert(Sums::new(backend, *dim)?),
                };
                sums.add(backend, x, *rows, *dim)?;
            }
        }
        self.layer += 1;
        let mut hessians = [const { None }; Input::PER_LAYER];
        for (hessian, sums) in hessians.iter_mut().zip(sums) {
            *hessian = sums.map(Sums::hessian).transpose()?;
        }
        Ok(hessians)
    }

    fn head(&mut self) -> Result<Hessian> {
        let (backend, dim) = (self.session.model().backend(), self.session.model().config().hidden);
        let mut sums = Sums::new(backend, dim)?;
        for (rows, stream) in &self.streams {
            sums.add(backend, self.session.norm(stream, *rows)?, *rows, dim)?;
        }
        sums.hessian()
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// A Hessian being summed: on the inputs' device, or here.
enum Sums<'m, B: Backend> {
    Device(usize, Box<dyn HessianSum<B::Buffer> + 'm>),
    Host(Hessian),
}

impl<'m, B: Backend> Sums<'m, B> {
    fn new(backend: &'m B, dim: usize) -> Result<Self> {
        Ok(match backend.hessian_sum(dim)? {
            Some(sum) => Self::Device(dim, sum),
            None => Self::Host(Hessian::new(dim)),
        })
    }

    /// Adds the rows x `[rows, dim]`.
    fn add(&mut self, backend: &B, x: &B::Buffer, rows: usize, dim: usize) -> Result<()> {
        match self {
            Self::Device(_, sum) => sum.add(x, rows)?,
            Self::Host(hessian) => {
                hessian.add(bytemuck::cast_slice(&block_on(backend.read(x, 0, rows * dim))?));
            }
        }
        Ok(())
    }

    fn hessian(self) -> Result<Hessian> {
        match self {
            Self::Device(dim, sum) => Ok(Hessian::of_sums(dim, &sum.sums()?)),
            Self::Host(hessian) => Ok(hessian),
        }
    }
}
