//! [`PqMatrix`]: a quantized weight matrix.

use std::borrow::Cow;
use std::sync::Arc;

use half::f16;

use super::pack;
use super::rotate::Rotation;
use super::spec::{PqSpec, RowScale, Scope};
use crate::{Error, Result};

/// A weight matrix `[rows, cols]` (`[out, in]`) as codes, codebooks and row scales, in the file's canonical layout.
///
/// `W[n, j*d + i] = scales[n] * codebooks[j / group][codes[n, j]][i]`, for the rotated W when the spec rotates.
#[derive(Clone, Debug)]
pub struct PqMatrix<'a> {
    pub spec: PqSpec,
    pub rows: usize,
    pub cols: usize,
    /// `[rows, row_bytes]`: each row's codes, log2 K bits each, lowest bits first.
    pub codes: Cow<'a, [u8]>,
    /// `[codebooks, k, d]`; one copy for all matrices with the same universal codebook.
    pub codebooks: Arc<[f16]>,
    /// `[rows]`, or empty without row scales.
    pub scales: Cow<'a, [f16]>,
}

impl<'a> PqMatrix<'a> {
    /// Fails if a size is wrong or a number is not finite; `name` is for the error text.
    pub fn checked(self, name: &str) -> Result<Self> {
        let Self { spec, rows, cols, .. } = &self;
        if *rows == 0 || *cols == 0 {
            return Err(Error::mismatch(name, "a matrix that is not empty", format!("[{rows}, {cols}]")));
        }
        let codes = rows.checked_mul(spec.row_bytes(*cols)).unwrap_or(usize::MAX);
        expect_len(&format!("{name}.codes"), codes, self.codes.len())?;
        let codebooks = spec.codebooks(*cols).saturating_mul(spec.k * spec.d);
        expect_len(&format!("{name}.codebooks"), codebooks, self.codebooks.len())?;
        let scales = if spec.scale == RowScale::None { 0 } else { *rows };
        expect_len(&format!("{name}.scales"), scales, self.scales.len())?;
        for (part, values) in [("codebooks", &self.codebooks[..]), ("scales", &self.scales[..])] {
            if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                let what = format!("{name}.{part}, value {at}");
                return Err(Error::mismatch(what, "a finite number", values[at]));
            }
        }
        Ok(self)
    }

    /// The rotation that the input needs, if any.
    pub fn rotation(&self) -> Option<Rotation> {
        self.spec.rotation(self.cols)
    }

    /// Row `n`'s scale, 1 without row scales.
    pub fn scale(&self, n: usize) -> f32 {
        self.scales.get(n).map_or(1.0, |s| s.to_f32())
    }

    /// Row `n`'s codes into `out` `[subspaces]`.
    pub fn unpack_row(&self, n: usize, out: &mut [u16]) {
        let row_bytes = self.spec.row_bytes(self.cols);
        pack::unpack(&self.codes[n * row_bytes..][..row_bytes], self.spec.code_bits(), out);
    }

    /// Row `n` as the stored (still rotated) weights, into `out` `[cols]`.
    pub fn decode_row(&self, n: usize, out: &mut [f32]) {
        let PqSpec { d, k, .. } = self.spec;
        let group = self.spec.subspaces_per_codebook(self.cols);
        let mut codes = vec![0; self.spec.subspaces(self.cols)];
        self.unpack_row(n, &mut codes);
        let scale = self.scale(n);
        for (j, (part, &code)) in out[..self.cols].chunks_mut(d).zip(&codes).enumerate() {
            let centroid = &self.codebooks[((j / group) * k + code as usize) * d..][..d];
            for (w, c) in part.iter_mut().zip(centroid) {
                *w = scale * c.to_f32();
            }
        }
    }

    /// Bytes of codes, scales and codebooks; a universal codebook does not count.
    pub fn bytes(&self) -> usize {
        let own = if self.spec.scope == Scope::Universal { 0 } else { 2 * self.codebooks.len() };
        self.codes.len() + own + 2 * self.scales.len()
    }
}

fn expect_len(what: &str, expected: usize, found: usize) -> Result<()> {
    if expected == found { Ok(()) } else { Err(Error::mismatch(what, format!("{expected} values"), found)) }
}
