//! GPTQ checkpoints in the layout of AutoGPTQ and GPTQModel. For a layer of `ins` columns and `outs` rows:
//! `qweight` `[ins * bits / 32, outs]`, each column a stream of codes, low bits first; `qzeros`
//! `[groups, outs * bits / 32]`, each row such a stream; `scales` `[groups, outs]`; `g_idx` `[ins]`, the group of each
//! column: with act-order, columns of a group are not neighbours.

use super::Config;
use super::packed::{Layer, Words, check_shape, layers, neighbours, scales, words};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

pub fn unpack(checkpoint: &mut Checkpoint, config: &Config<'_>) -> Result<()> {
    let bits = config.bits(&[2, 3, 4, 8])?;
    let group = config.group()?;
    // The first format stores zero points minus one.
    let offset = match config.text("checkpoint_format") {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(_) => return Err(config.mismatch("checkpoint_format", "gptq or gptq_v2")),
    };
    for name in layers(checkpoint)? {
        layer(checkpoint, &name, bits, group, offset)?;
    }
    Ok(())
}

fn layer(
    checkpoint: &mut Checkpoint,
    name: &str,
    bits: u32,
    group: Option<usize>,
    offset: u32,
) -> Result<()> {
    let qweight = Words::read(checkpoint, format!("{name}.qweight"))?;
    let qzeros = Words::read(checkpoint, format!("{name}.qzeros"))?;
    let (ins, outs) = (codes(&qweight.name, qweight.rows, bits)?, qweight.cols);
    let (groups, scales) = scales(checkpoint, &format!("{name}.scales"), outs)?;
    let g_idx = format!("{name}.g_idx");
    let group_of = match checkpoint.contains(&g_idx) {
        true => group_index(checkpoint, &g_idx, ins, groups)?,
        false => neighbours(&format!("{name}.scales"), ins, group, groups)?,
    };
    qzeros.check_shape(groups, qzeros.cols)?;
    if codes(&qzeros.name, qzeros.cols, bits)? != outs {
        let expected = format!("rows of {outs} codes of {bits} bits");
        return Err(Error::mismatch(
            format!("tensor {}", qzeros.name),
            expected,
            format!("{} words", qzeros.cols),
        ));
    }
    let mask = (1 << bits) - 1;
    let zero = |at: usize| (code(bits, at % outs, |w| qzeros.word(at / outs, w)) + offset) & mask;
    let zeros = (0..groups * outs).map(zero).collect();
    let code = |column: usize, out: usize| code(bits, column, |w| qweight.word(w, out));
    Layer { name, ins, outs, groups: group_of, scales, zeros, code }.store(checkpoint)
}

/// The number of codes of `bits` bits in `words` words.
fn codes(name: &str, words: usize, bits: u32) -> Result<usize> {
    let total = words.saturating_mul(32);
    if words == 0 || !total.is_multiple_of(bits as usize) {
        let expected = format!("words that hold whole codes of {bits} bits");
        return Err(Error::mismatch(format!("tensor {name}"), expected, format!("{words} words")));
    }
    Ok(total / bits as usize)
}

/// Code `i` of a stream of words; a code of 3 bits may lie across two.
fn code(bits: u32, i: usize, word: impl Fn(usize) -> u32) -> u32 {
    let (first, shift) = (i * bits as usize / 32, i as u32 * bits % 32);
    let mut code = word(first) >> shift;
    if shift + bits > 32 {
        code |= word(first + 1) << (32 - shift);
    }
    code & ((1 << bits) - 1)
}

fn group_index(checkpoint: &Checkpoint, name: &str, ins: usize, groups: usize) -> Result<Vec<usize>> {
    check_shape(name, &[ins], checkpoint.raw(name)?.shape)?;
    let index: Vec<usize> = words(checkpoint, name)?.into_iter().map(|group| group as usize).collect();
    match index.iter().find(|group| **group >= groups) {
        None => Ok(index),
        Some(bad) => {
            Err(Error::mismatch(format!("tensor {name}"), format!("groups below {groups}"), *bad as i32))
        }
    }
}
