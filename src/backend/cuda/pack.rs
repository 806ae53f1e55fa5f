//! Neighbouring launches as one: a norm, swiglu, rotation or attention's last kernel writes its rows as the matrix behind
//! reads them, in f16 or in the order of pq_matmul_tiles, where the next launch would do only that.

use super::commands::{Arg, Kernel, Work, words_of};

/// A kernel that can.
struct Producer {
    entry: &'static str,
    /// Places of its output and of `Packed` among its arguments.
    y: usize,
    packed: usize,
    /// The grid's axis of rows.
    axis: usize,
    /// Whether it takes rows by spans, which alone write them in f16.
    spans: bool,
}

const PRODUCERS: &[Producer] = &[
    Producer { entry: "rms_norm", y: 2, packed: 4, axis: 0, spans: false },
    Producer { entry: "rms_norm_rows", y: 2, packed: 4, axis: 0, spans: true },
    Producer { entry: "swiglu", y: 1, packed: 3, axis: 1, spans: false },
    Producer { entry: "swiglu_rows", y: 1, packed: 3, axis: 1, spans: true },
    Producer { entry: "rotate", y: 1, packed: 3, axis: 1, spans: true },
    Producer { entry: "attention_combine", y: 4, packed: 6, axis: 1, spans: false },
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
    PRODUCERS.iter().find(|producer| producer.entry == kernel.function.entry)
}

/// Whether a kernel writes its rows for a matrix as well.
pub fn packs(kernel: &Kernel) -> bool {
    producer(kernel).is_some_and(|producer| kernel.args[producer.packed] != Arg::params(&NOWHERE))
}

/// Makes `before` do what `next` does with its rows; false where it cannot.
fn into(before: &mut Kernel, next: &Kernel) -> bool {
    let Some(producer) = producer(before).filter(|_| !packs(before)) else { return false };
    let rows = before.grid[producer.axis];
    let packed = match next.function.entry {
        "pack_rows" => tiled(next, rows),
        "to_half" if producer.spans => halves(next, rows),
        _ => None,
    };
    let Some((grid, packed)) = packed.filter(|_| before.args[producer.y] == next.args[0]) else {
        return false;
    };
    before.args[producer.packed] = Arg::params(&packed);
    before.grid[producer.axis] = grid;
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
