//! Neighbouring launches as one: a norm, swiglu or attention's last kernel writes its rows in the order in which
//! pq_matmul_tiles reads them, where the next launch would do only that.

use super::commands::{Arg, Kernel, Work};

/// Kernels that can, with the places of their output and of `Packed` among their arguments, and the grid's axis of rows.
const PRODUCERS: &[(&str, usize, usize, usize)] = &[
    ("rms_norm", 2, 4, 0),
    ("rms_norm_rows", 2, 4, 0),
    ("swiglu", 1, 3, 1),
    ("swiglu_rows", 1, 3, 1),
    ("attention_combine", 4, 6, 1),
];

/// What `Packed` is to kernels that write nothing so.
pub const NOWHERE: [u32; 5] = [0; 5];

/// The same work in fewer launches.
pub fn pack(work: &[Work]) -> Vec<Work> {
    let mut joined: Vec<Work> = Vec::with_capacity(work.len());
    for now in work {
        let fused = match (joined.last_mut(), now) {
            (Some(Work::Kernel(before)), Work::Kernel(now)) if now.function.entry == "pack_rows" => {
                into(before, now)
            }
            _ => false,
        };
        if !fused {
            joined.push(now.clone());
        }
    }
    joined
}

/// Makes `producer` do what `pack` does; false where it cannot.
fn into(producer: &mut Kernel, pack: &Kernel) -> bool {
    let Some((_, y, packed, axis)) = PRODUCERS.iter().find(|(entry, ..)| *entry == producer.function.entry)
    else {
        return false;
    };
    // pack_rows: x, packed, rows, in, groups, count, split.
    let [x, Arg::Address(to), _, Arg::Word(cols), Arg::Word(groups), _, Arg::Word(split)] = pack.args[..]
    else {
        return false;
    };
    let Some(d) = pack.function.unit.constant("PQ_D").filter(|d| d.is_power_of_two()) else { return false };
    if producer.args[*y] != x || !cols.is_multiple_of(64 * d) {
        return false;
    }
    // Packed rows, of which none may be missing.
    let rows = if split > 0 { groups * 4 } else { groups * 8 };
    if producer.grid[*axis] > rows {
        return false;
    }
    producer.args[*packed] = Arg::params(&[to as u32, (to >> 32) as u32, groups, split, d.ilog2()]);
    producer.grid[*axis] = rows;
    true
}
