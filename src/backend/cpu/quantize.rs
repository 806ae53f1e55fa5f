use super::Cpu;
use crate::Result;
use crate::backend::{Backend, Quantizer, Rows};
use crate::pq::{self, Feedback, PqSpec, Quantized};

impl Quantizer for Cpu {
    fn describe(&self) -> String {
        Backend::describe(self)
    }

    /// 16 MB of f32.
    fn block(&self) -> usize {
        1 << 22
    }

    fn quantize(&self, rows: &Rows<'_>, spec: PqSpec, feedback: Option<&Feedback>) -> Result<Quantized> {
        let cols = rows.weights.shape.last().copied().unwrap_or(0);
        pq::quantize(rows.name, rows.first, rows.weights.to_f32(), cols, spec, feedback)
    }
}
