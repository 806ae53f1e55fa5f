//! AWQ checkpoints in the "gemm" layout of AutoAWQ. For a layer of `ins` columns and `outs` rows: `qweight`
//! `[ins, outs / 8]` and `qzeros` `[groups, outs / 8]` of 4-bit codes, eight neighbouring rows in a word, the even
//! ones in its low half; `scales` `[groups, outs]`.

use super::Config;
use super::packed::{Layer, Words, layers, neighbours, scales};
use crate::Result;
use crate::checkpoint::Checkpoint;

pub fn unpack(checkpoint: &mut Checkpoint, config: &Config<'_>) -> Result<()> {
    config.bits(&[4])?;
    if config.text("version").is_some_and(|version| !version.eq_ignore_ascii_case("gemm")) {
        return Err(config.mismatch("version", "gemm"));
    }
    let group = config.group()?;
    for name in layers(checkpoint)? {
        let qweight = Words::read(checkpoint, format!("{name}.qweight"))?;
        let qzeros = Words::read(checkpoint, format!("{name}.qzeros"))?;
        let (ins, outs) = (qweight.rows, qweight.cols.saturating_mul(8));
        let (groups, scales) = scales(checkpoint, &format!("{name}.scales"), outs)?;
        qzeros.check_shape(groups, qweight.cols)?;
        let group_of = neighbours(&format!("{name}.scales"), ins, group, groups)?;
        let zeros = (0..groups * outs).map(|at| code(&qzeros, at / outs, at % outs)).collect();
        let code = |column: usize, out: usize| code(&qweight, column, out);
        Layer { name: &name, ins, outs, groups: group_of, scales, zeros, code }.store(checkpoint)?;
    }
    Ok(())
}

/// The code of output row `out` in a row of words.
fn code(words: &Words, row: usize, out: usize) -> u32 {
    let nibble = out % 8 / 2 + 4 * (out % 2);
    words.word(row, out / 8) >> (4 * nibble) & 15
}
