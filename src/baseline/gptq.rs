//! GPTQ checkpoints in the layout of AutoGPTQ and GPTQModel. For a layer of `ins` columns and `outs` rows:
//! `qweight` `[ins * bits / 32, outs]`, each column a stream of codes, low bits first; `qzeros`
//! `[groups, outs * bits / 32]`, each row such a stream; `scales` `[groups, outs]`; `g_idx` `[ins]`, the group of each
//! column: with act-order, columns of a group are not neighbours.

use super::Config;
use super::packed::{Layer, Words, check_shape, layers, neighbours, scales, words};
use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Bits that a code may have.
const BITS: &[u32] = &[2, 3, 4, 8];

pub fn unpack(checkpoint: &mut Checkpoint, config: &Config<'_>) -> Result<()> {
    let bits = config.bits(BITS)?;
    let group = config.group()?;
    // transformers 5 writes `format`, others `checkpoint_format`.
    let key = ["checkpoint_format", "format"].into_iter().find(|key| !config.values[*key].is_null());
    // The first format stores zero points minus one.
    let offset = match key.map(|key| (key, config.text(key))) {
        None | Some((_, Some("gptq"))) => 1,
        Some((_, Some("gptq_v2"))) => 0,
        Some((key, _)) => return Err(config.mismatch(key, "gptq or gptq_v2")),
    };
    // GPTQModel's patterns that give layers other settings. The shapes of a layer's tensors say the same.
    let by_layer = config.values["dynamic"].as_object().is_some_and(|patterns| !patterns.is_empty());
    for name in layers(checkpoint)? {
        if by_layer {
            let (bits, group) = settings(checkpoint, &name)?;
            layer(checkpoint, &name, bits, Some(group), offset)?;
        } else {
            layer(checkpoint, &name, bits, group, offset)?;
        }
    }
    Ok(())
}

/// Bits of a code and columns of a group of a layer, as the shapes of its tensors say.
fn settings(checkpoint: &Checkpoint, name: &str) -> Result<(u32, usize)> {
    let shape = |part: &str| -> Result<[usize; 2]> {
        let name = format!("{name}.{part}");
        let found = checkpoint.raw(&name)?.shape;
        let bad =
            || Error::mismatch(format!("tensor {name}"), "two dimensions above 0", format!("{found:?}"));
        <[usize; 2]>::try_from(found).ok().filter(|[a, b]| a * b > 0).ok_or_else(bad)
    };
    let ([words, _], [groups, outs]) = (shape("qweight")?, shape("scales")?);
    let [_, zero_words] = shape("qzeros")?;
    let bits = BITS.iter().copied().find(|bits| zero_words * 32 == outs * *bits as usize);
    let bits = bits.ok_or_else(|| {
        let expected = format!("{outs} codes of one of {BITS:?} bits in a row");
        Error::mismatch(format!("tensor {name}.qzeros"), expected, format!("{zero_words} words"))
    })?;
    Ok((bits, (words * 32 / bits as usize).div_ceil(groups)))
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
    let in_order = || neighbours(&format!("{name}.scales"), ins, group, groups);
    let group_of = match checkpoint.contains(&g_idx) {
        true => match group_index(checkpoint, &g_idx, ins, groups)? {
            // Written by programs whose kernels do not read it unless columns were reordered.
            index if groups > 1 && index.iter().all(|group| *group == 0) => in_order()?,
            index => index,
        },
        false => in_order()?,
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
