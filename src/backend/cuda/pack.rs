//! Neighbouring launches as one: a norm, swiglu, rotation or attention's last kernel writes its rows as the matrix behind
//! reads them, in f16 or in the order of pq_matmul_tiles, where the next launch would do only that.

use super::commands::{Arg, Kernel, Work};

/// A kernel that can: its entry, the places of its output and of `Packed` among its arguments, the grid's axis of rows, and
/// whether it takes rows by spans, which alone write them in f16.
struct Producer(&'static str, usize, usize, usize, bool);

const PRODUCERS: &[Producer] = &[
    Producer("rms_norm", 2, 4, 0, false),
    Producer("rms_norm_rows", 2, 4, 0, true),
    Producer("swiglu", 1, 3, 1, false),
    Producer("swiglu_rows", 1, 3, 1, true),
    Producer("rotate", 1, 3, 1, true),
    Producer("attention_combine", 4, 6, 1, false),
];

/// What `Packed` is to kernels that write nothing so.
pub const NOWHERE: [u32; 7] = [0; 7];

/// The same work in fewer launches.
pub fn pack(work: &[Work]) -> Vec<Work> {
    let mut joined: Vec<Work> = Vec::with_capacity(work.len());
    for now in work {
        let fused = match (joined.last_mut(), now) {
            (Some(Work::Kernel(before)), Work::Kernel(now)) => into(before, now),
            _ => false,
        };
        if !fused {
            joined.push(now.clone());
        }
    }
    joined
}

fn producer(kernel: &Kernel) -> Option<&'static Producer> {
    PRODUCERS.iter().find(|Producer(entry, ..)| *entry == kernel.function.entry)
}

/// Whether a kernel writes its rows for a matrix as well.
pub fn packs(kernel: &Kernel) -> bool {
    producer(kernel).is_some_and(|Producer(_, _, place, ..)| kernel.args[*place] != Arg::params(&NOWHERE))
}

/// Makes `before` do what `next` does with its rows; false where it cannot.
fn into(before: &mut Kernel, next: &Kernel) -> bool {
    let Some(Producer(_, y, place, axis, spans)) = producer(before).filter(|_| !packs(before)) else {
        return false;
    };
    let rows = before.grid[*axis];
    let packed = match next.function.entry {
        "pack_rows" => tiled(next, rows),
        "to_half" if *spans => halves(next, rows),
        _ => None,
    };
    let Some((grid, packed)) = packed.filter(|_| before.args[*y] == next.args[0]) else { return false };
    before.args[*place] = Arg::params(&packed);
    before.grid[*axis] = grid;
    true
}

/// The grid's rows, and the words of `Packed`, for what `pack` does to `rows` rows.
fn tiled(pack: &Kernel, rows: u32) -> Option<(u32, [u32; 7])> {
    // pack_rows: x, packed, rows, in, groups, count, split.
    let [_, Arg::Address(to), _, Arg::Word(cols), Arg::Word(groups), _, Arg::Word(split)] = pack.args[..]
    else {
        return None;
    };
    let d = pack.function.unit.constant("PQ_D").filter(|d| d.is_power_of_two())?;
    // Packed rows, of which none may be missing.
    let all = if split > 0 { groups * 4 } else { groups * 8 };
    let [low, high] = words_of(to);
    (cols.is_multiple_of(64 * d) && rows <= all).then_some((all, [low, high, groups, split, d.ilog2(), 0, 0]))
}

/// The same for what `half` does.
fn halves(half: &Kernel, rows: u32) -> Option<(u32, [u32; 7])> {
    // to_half: x, y, rows, cols, dtype.
    let [_, Arg::Address(to), Arg::Word(count), Arg::Word(cols), Arg::Word(dtype)] = half.args[..] else {
        return None;
    };
    let [low, high] = words_of(to);
    (cols.is_multiple_of(8) && rows == count).then_some((rows, [low, high, 0, 0, 0, cols, dtype]))
}

fn words_of(address: u64) -> [u32; 2] {
    [address as u32, (address >> 32) as u32]
}
