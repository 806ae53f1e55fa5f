//! [`PqSpec`]: how a matrix is quantized, and its text form.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::rotate::Rotation;
use crate::{Error, Result};

/// Which sub-vectors share a codebook.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One codebook for each subspace (column group): the FASQ paper's layout.
    Subspace,
    /// One codebook for every N neighbouring subspaces.
    Group(u32),
    /// One codebook for the whole matrix.
    Matrix,
    /// One codebook per (d, K) for the whole file, trained on a Gaussian.
    Universal,
}

/// What a row is divided by before assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowScale {
    /// Nothing: codebooks hold raw weights.
    None,
    /// The row's root mean square.
    Rms,
    /// A third of the row's largest magnitude.
    AbsMax,
}

/// How one matrix `[out, in]` is product-quantized: sub-vectors of `d` weights, `k` centroids, and what
/// happens to a row before it is assigned.
///
/// Written `D-K@SCOPE` with optional suffixes, e.g. `2-256@universal` or `3-512@matrix+absmax+norotate`:
/// * scope: `@subspace`, `@group:N`, `@matrix`, `@universal` (default `@universal`);
/// * row scale: `+noscale`, `+rms`, `+absmax` (default: `+noscale` for `@subspace`, else `+rms` when rotated and
///   `+absmax` when not);
/// * rotation: `+rotate`, `+norotate` (default: rotated, except `@subspace`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PqSpec {
    /// Weights per sub-vector, 1 to 8.
    pub d: usize,
    /// Centroids per codebook, a power of two from 4 to 65536.
    pub k: usize,
    pub scope: Scope,
    pub scale: RowScale,
    /// Whether the input dimension is rotated by [`super::rotate::Rotation`] before quantization.
    pub rotate: bool,
}

impl PqSpec {
    /// The FASQ paper's layout at 4 bits: a codebook for each subspace, of raw weights.
    pub const PAPER: Self =
        Self { d: 2, k: 256, scope: Scope::Subspace, scale: RowScale::None, rotate: false };
    /// Universal codebooks at 4 bits, with row scales and rotation.
    pub const UNIVERSAL: Self =
        Self { d: 2, k: 256, scope: Scope::Universal, scale: RowScale::Rms, rotate: true };

    /// The spec `d-k@scope` with the scope's default row scale and rotation.
    pub fn new(d: usize, k: usize, scope: Scope) -> Result<Self> {
        let raw = scope == Scope::Subspace;
        let scale = if raw { RowScale::None } else { RowScale::Rms };
        Self { d, k, scope, scale, rotate: !raw }.checked()
    }

    fn checked(self) -> Result<Self> {
        let what = || format!("quantization spec {}-{}", self.d, self.k);
        if !(1..=8).contains(&self.d) {
            return Err(Error::mismatch(what(), "d from 1 to 8", self.d));
        }
        if !self.k.is_power_of_two() || !(4..=65536).contains(&self.k) {
            return Err(Error::mismatch(what(), "K a power of two from 4 to 65536", self.k));
        }
        if self.scope == Scope::Group(0) {
            return Err(Error::mismatch(what(), "a group of at least one subspace", 0));
        }
        if self.scope == Scope::Universal && self.scale == RowScale::None {
            return Err(Error::invalid(what(), "a universal codebook needs a row scale"));
        }
        Ok(self)
    }

    /// This spec for a matrix with `cols` columns: without rotation if no block divides them.
    pub fn for_cols(self, cols: usize) -> Self {
        if !self.rotate || Rotation::for_dim(cols).is_some() {
            return self;
        }
        let default = self.scale == default_scale(self.scope, true);
        let scale = if default { default_scale(self.scope, false) } else { self.scale };
        Self { rotate: false, scale, ..self }
    }

    /// The rotation of rows with `cols` columns, if any.
    pub fn rotation(&self, cols: usize) -> Option<Rotation> {
        self.rotate.then(|| Rotation::for_dim(cols)).flatten()
    }

    /// Bits of one code: log2 K.
    pub fn code_bits(&self) -> usize {
        self.k.trailing_zeros() as usize
    }

    /// Sub-vectors in a row of `cols` weights: ceil(cols / d).
    pub fn subspaces(&self, cols: usize) -> usize {
        cols.div_ceil(self.d)
    }

    /// Codebooks that a matrix with `cols` columns uses (1 for matrix and universal scope).
    pub fn codebooks(&self, cols: usize) -> usize {
        match self.scope {
            Scope::Subspace => self.subspaces(cols),
            Scope::Group(n) => self.subspaces(cols).div_ceil(n as usize),
            Scope::Matrix | Scope::Universal => 1,
        }
    }

    /// Subspaces that share one codebook, for a matrix with `cols` columns.
    pub fn subspaces_per_codebook(&self, cols: usize) -> usize {
        match self.scope {
            Scope::Subspace => 1,
            Scope::Group(n) => (n as usize).min(self.subspaces(cols)),
            Scope::Matrix | Scope::Universal => self.subspaces(cols),
        }
    }

    /// Bytes of one row's packed codes: its bits rounded up to whole bytes.
    pub fn row_bytes(&self, cols: usize) -> usize {
        (self.subspaces(cols) * self.code_bits()).div_ceil(8)
    }

    /// Bytes of a `[rows, cols]` matrix in a file: codes, codebooks, scales; a universal codebook does not count.
    pub fn matrix_bytes(&self, rows: usize, cols: usize) -> usize {
        let codebooks =
            if self.scope == Scope::Universal { 0 } else { self.codebooks(cols) * self.codebook_bytes() };
        let scales = if self.scale == RowScale::None { 0 } else { 2 * rows };
        rows * self.row_bytes(cols) + codebooks + scales
    }

    /// Bytes of one codebook `[k, d]` in f16.
    pub fn codebook_bytes(&self) -> usize {
        2 * self.k * self.d
    }

    /// Name of the universal codebook of this spec's (d, K) in a .fasq file.
    pub fn universal_name(&self) -> String {
        format!("codebook.{}-{}", self.d, self.k)
    }
}

impl fmt::Display for PqSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}@", self.d, self.k)?;
        match self.scope {
            Scope::Subspace => write!(f, "subspace")?,
            Scope::Group(n) => write!(f, "group:{n}")?,
            Scope::Matrix => write!(f, "matrix")?,
            Scope::Universal => write!(f, "universal")?,
        }
        let raw = self.scope == Scope::Subspace;
        if self.rotate == raw {
            write!(f, "{}", if self.rotate { "+rotate" } else { "+norotate" })?;
        }
        if self.scale != default_scale(self.scope, self.rotate) {
            let text = match self.scale {
                RowScale::None => "+noscale",
                RowScale::Rms => "+rms",
                RowScale::AbsMax => "+absmax",
            };
            write!(f, "{text}")?;
        }
        Ok(())
    }
}

fn default_scale(scope: Scope, rotate: bool) -> RowScale {
    match (scope, rotate) {
        (Scope::Subspace, _) => RowScale::None,
        (_, true) => RowScale::Rms,
        (_, false) => RowScale::AbsMax,
    }
}

impl FromStr for PqSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::mismatch(
                "quantization spec",
                "D-K@SCOPE, like 2-256@universal or 3-512@matrix+absmax+norotate",
                format!("{text:?}"),
            )
        };
        let mut parts = text.split('+');
        let head = parts.next().ok_or_else(bad)?;
        let (size, scope) = head.split_once('@').unwrap_or((head, "universal"));
        let (d, k) = size.split_once('-').ok_or_else(bad)?;
        let (d, k) = (d.parse().map_err(|_| bad())?, k.parse().map_err(|_| bad())?);
        let scope = match scope.split_once(':') {
            Some(("group", n)) => Scope::Group(n.parse().map_err(|_| bad())?),
            None if scope == "subspace" => Scope::Subspace,
            None if scope == "matrix" => Scope::Matrix,
            None if scope == "universal" => Scope::Universal,
            _ => return Err(bad()),
        };
        let (mut scale, mut rotate) = (None, scope != Scope::Subspace);
        for option in parts {
            match option {
                "rotate" => rotate = true,
                "norotate" => rotate = false,
                "noscale" => scale = Some(RowScale::None),
                "rms" => scale = Some(RowScale::Rms),
                "absmax" => scale = Some(RowScale::AbsMax),
                _ => return Err(bad()),
            }
        }
        let scale = scale.unwrap_or_else(|| default_scale(scope, rotate));
        Self { d, k, scope, scale, rotate }.checked()
    }
}

impl Serialize for PqSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PqSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips() {
        for text in [
            "2-256@universal",
            "2-256@subspace",
            "3-512@matrix",
            "8-65536@group:16",
            "2-64@universal+norotate",
            "2-64@matrix+norotate+rms",
            "1-4@subspace+rotate",
            "2-256@subspace+rms",
            "4-4096@matrix+noscale",
        ] {
            let spec: PqSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
        assert_eq!("2-256".parse::<PqSpec>().unwrap().to_string(), "2-256@universal");
        assert_eq!("2-64@universal+norotate".parse::<PqSpec>().unwrap().scale, RowScale::AbsMax);
    }

    #[test]
    fn impossible_specs_are_refused() {
        for text in [
            "",
            "2",
            "0-256",
            "9-256",
            "2-255",
            "2-2",
            "2-131072",
            "2-256@",
            "2-256@group:0",
            "2-256@group:x",
            "2-256@universal+noscale",
            "2-256+x",
            "-1-4",
        ] {
            assert!(text.parse::<PqSpec>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn bytes_count_everything() {
        let spec: PqSpec = "2-64@matrix".parse().unwrap();
        assert_eq!(spec.row_bytes(7), 3); // 4 codes of 6 bits
        assert_eq!(spec.matrix_bytes(5, 7), 5 * 3 + 64 * 2 * 2 + 5 * 2);
        let paper: PqSpec = "2-256@subspace".parse().unwrap();
        assert_eq!(paper.matrix_bytes(16, 8), 16 * 4 + 4 * 256 * 2 * 2);
    }
}
