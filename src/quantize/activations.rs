//! [`Activations`]: a text on its way through the unquantized model, all of it at one block before the next.

use std::sync::atomic::{AtomicBool, Ordering};

use pollster::block_on;

use super::moments::Moments;
use crate::backend::{Backend, Gram};
use crate::model::arch::Input;
use crate::model::{Model, Session, SessionOptions};
use crate::{Error, Result};

/// What linear layers read, block by block.
pub trait Inputs {
    /// Takes the text through the next block, and returns the moments of those of its inputs that are `wanted`.
    fn next_block(&mut self, wanted: [bool; Input::PER_LAYER])
    -> Result<[Option<Moments>; Input::PER_LAYER]>;

    /// After the last block: the moments of what the output head reads.
    fn head(&mut self) -> Result<Moments>;

    /// Stands for the text and whatever else decides the moments.
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
    ) -> Result<[Option<Moments>; Input::PER_LAYER]> {
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
        let mut moments = [const { None }; Input::PER_LAYER];
        for (moments, sums) in moments.iter_mut().zip(sums) {
            *moments = sums.map(Sums::moments).transpose()?;
        }
        Ok(moments)
    }

    fn head(&mut self) -> Result<Moments> {
        let (backend, dim) = (self.session.model().backend(), self.session.model().config().hidden);
        let mut sums = Sums::new(backend, dim)?;
        for (rows, stream) in &self.streams {
            sums.add(backend, self.session.norm(stream, *rows)?, *rows, dim)?;
        }
        sums.moments()
    }

    fn fingerprint(&self) -> u64 {
        self.fingerprint
    }
}

/// Moments in the making: where the inputs are, or here.
enum Sums<'m, B: Backend> {
    Device(usize, Box<dyn Gram<B::Buffer> + 'm>),
    Host(Moments),
}

impl<'m, B: Backend> Sums<'m, B> {
    fn new(backend: &'m B, dim: usize) -> Result<Self> {
        Ok(match backend.gram(dim)? {
            Some(gram) => Self::Device(dim, gram),
            None => Self::Host(Moments::new(dim)),
        })
    }

    /// Adds the rows x `[rows, dim]`.
    fn add(&mut self, backend: &B, x: &B::Buffer, rows: usize, dim: usize) -> Result<()> {
        match self {
            Self::Device(_, gram) => gram.add(x, rows)?,
            Self::Host(moments) => {
                moments.add(bytemuck::cast_slice(&block_on(backend.read(x, 0, rows * dim))?));
            }
        }
        Ok(())
    }

    fn moments(self) -> Result<Moments> {
        match self {
            Self::Device(dim, gram) => Ok(Moments::of_sums(dim, &gram.sums()?)),
            Self::Host(moments) => Ok(moments),
        }
    }
}
