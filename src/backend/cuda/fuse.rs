//! What neighbouring operations of a step become: norms, rotations and SwiGLU move into the kernels of the
//! matrices before or behind them (kernels/pq_row.cu), attention into fewer phases.

use super::attention;
use super::commands::{Arg, Kernel};
use super::device::{Device, Scratch};
use super::kernels::TILE_ROWS;
use super::memory::{Memory, address};
use super::unit::Unit;
use crate::Result;

/// Bytes of the next matrix that a block asks for while it waits for others.
const AHEAD: u32 = 64 << 10;

/// Places of a matrix's arguments.
pub struct Places {
    weight: usize,
    x: usize,
    y: usize,
    out: usize,
    cols: usize,
    params: usize,
}

/// Of pq_matvec_shared, which has code tiles and a chunk of columns behind `cols`.
const PQ: Places = Places { weight: 0, x: 4, y: 5, out: 6, cols: 7, params: 10 };
const PQ_CODE_TILES: usize = 8;
const PQ_CHUNK: usize = 9;
/// Of dense_row.
const DENSE: Places = Places { weight: 0, x: 2, y: 3, out: 4, cols: 5, params: 6 };

impl Places {
    pub fn of(kernel: &Kernel) -> Option<&'static Self> {
        match kernel.function.entry {
            "pq_matvec_shared" => Some(&PQ),
            "dense_row" => Some(&DENSE),
            _ => None,
        }
    }
}

/// What a matrix's kernel does besides multiplying, as `Call` of kernels/pq_row.cu and of kernels/dense_row.cu have it:
/// addresses, 0 for none, and numbers.
#[derive(Clone, Default)]
pub struct Sides {
    weight: u64,
    prepared: u64,
    next: u64,
    eps: u32,
    weight_offset: u32,
    rotate: u32,
    prepare: u32,
    paired: u32,
    with_signs: u32,
    next_tile_bytes: u32,
    next_row_tiles: u32,
    next_paired: u32,
}

impl Sides {
    /// The arguments behind a matrix's own.
    pub fn args(&self, kernel: &Kernel) -> Vec<Arg> {
        match kernel.function.entry {
            "pq_matvec_shared" => self.pq_args(),
            "dense_row" => self.dense_args(),
            _ => Vec::new(),
        }
    }

    fn dense_args(&self) -> Vec<Arg> {
        let (mut input, mut ahead) = ([0; 16], [0; 16]);
        input[..2].copy_from_slice(&[self.eps, self.weight_offset]);
        ahead[..3].copy_from_slice(&[self.next_tile_bytes, self.next_row_tiles, AHEAD]);
        let [weight, prepared, next] = [self.weight, self.prepared, self.next].map(Arg::Address);
        vec![weight, prepared, Arg::Params(input), next, Arg::Params(ahead)]
    }

    fn pq_args(&self) -> Vec<Arg> {
        let addresses = [self.weight, self.prepared, self.next];
        let mut words = [0; 16];
        words[..10].copy_from_slice(&[
            self.eps,
            self.weight_offset,
            self.rotate,
            self.prepare,
            self.paired,
            self.with_signs,
            self.next_tile_bytes,
            self.next_row_tiles,
            AHEAD,
            self.next_paired,
        ]);
        addresses.map(Arg::Address).into_iter().chain([Arg::Params(words)]).collect()
    }
}

/// A launch on its way into a step.
pub struct Phase {
    pub entry: &'static str,
    pub kernel: Kernel,
    /// For which rows it is done.
    pub when: When,
    /// Of a matrix: what is done besides.
    pub sides: Sides,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    Always,
    /// Where the step's first row sees few positions, or many.
    Near,
    Far,
}

impl Phase {
    /// A launch as it is. A matrix has x of as many passes in shared memory as there is room for.
    pub fn new(kernel: &Kernel) -> Self {
        let mut kernel = kernel.clone();
        if let Some(matvec) = kernel.matvec.clone() {
            let chunk = matvec.step_chunk(kernel.number(PQ_CODE_TILES) as u32);
            kernel.args[PQ_CHUNK] = Arg::Word(chunk);
            kernel.shared = matvec.step_shared(chunk);
        }
        Self { entry: kernel.function.entry, kernel, when: When::Always, sides: Sides::default() }
    }
}

/// Everything, in the order that finds each pattern whole. `keep`: memory that the phases use.
pub fn all(device: &Device, phases: &mut Vec<Phase>, keep: &mut Vec<Memory>) -> Result<()> {
    move_norms(phases);
    pair_swiglu(device, phases, keep)?;
    join_attention(device, phases, keep)?;
    look_ahead(phases);
    Ok(())
}

/// The row that a matrix makes ready for itself.
struct Row {
    x: u64,
    /// Where the row was to be, rotated. Without a norm `x` has the rotation's signs.
    prepared: u64,
    weight: u64,
    eps: u32,
    weight_offset: u32,
    rotate: u32,
}

/// Makes phase `i` prepare its row itself; false where it cannot.
fn prepare(phases: &mut [Phase], i: usize, row: &Row) -> bool {
    let wanted = wanted(&phases[i + 1..], row.prepared);
    let Phase { kernel, sides, .. } = &mut phases[i];
    let Some(places) = Places::of(kernel) else { return false };
    let can = match &kernel.matvec {
        Some(matvec) => matvec.prepares(row.rotate),
        None => row.rotate == 0 && row.weight != 0, // dense weights want no rotation
    };
    if kernel.number(places.x) != row.prepared || !can {
        return false;
    }
    kernel.args[places.x] = Arg::Address(row.x);
    sides.weight = row.weight;
    sides.prepared = if wanted || kernel.matvec.is_none() { row.prepared } else { 0 };
    (sides.eps, sides.weight_offset, sides.rotate) = (row.eps, row.weight_offset, row.rotate);
    sides.prepare = 1;
    true
}

/// Whether one of these phases reads what was written to `address`, or may.
fn wanted(phases: &[Phase], address: u64) -> bool {
    let names = |arg: &Arg| matches!(arg, Arg::Address(named) if *named == address);
    let first = phases.iter().find(|phase| phase.kernel.args.iter().any(names));
    let written = |phase: &Phase| match phase.entry {
        "rms_norm" => phase.kernel.number(2) == address,
        "gated_norm" => phase.kernel.number(3) == address,
        "swiglu" => phase.kernel.number(1) == address,
        "attention_combine" => phase.kernel.number(4) == address,
        _ => false,
    };
    !first.is_some_and(written)
}

/// Norms of one row move into the matrix behind them.
fn move_norms(phases: &mut Vec<Phase>) {
    let mut i = 0;
    while i + 1 < phases.len() {
        // RmsNormParams: rows, dim, eps, weight_offset, rotate.
        if phases[i].entry == "rms_norm" {
            let norm = &phases[i].kernel;
            let [rows, _, eps, weight_offset, rotate, ..] = norm.params(3);
            let (x, weight, prepared) = (norm.number(0), norm.number(1), norm.number(2));
            let row = Row { x, prepared, weight, eps, weight_offset, rotate };
            if rows == 1 && prepare(phases, i + 1, &row) {
                phases.remove(i);
            }
        }
        i += 1;
    }
}

/// SwiGLU moves into the matrix of gate and up before it, its rotation into the matrix behind.
fn pair_swiglu(device: &Device, phases: &mut Vec<Phase>, keep: &mut Vec<Memory>) -> Result<()> {
    let mut i = 0;
    while i + 2 < phases.len() {
        let [both, swiglu, _] = &phases[i..i + 3] else { break };
        i += 1;
        let [_, _, offset, accumulate, ..] = both.kernel.params(PQ.params);
        // SwiGluParams: rows, dim, rotate.
        let [rows, dim, rotate, ..] = swiglu.kernel.params(2);
        let pairs = both.kernel.matvec.is_some()
            && swiglu.entry == "swiglu"
            && rows == 1
            && [offset, accumulate] == [0, 0]
            && both.kernel.number(PQ.y) == swiglu.kernel.number(0)
            && both.kernel.number(PQ.out) == 2 * u64::from(dim)
            && dim.is_multiple_of(TILE_ROWS as u32);
        if !pairs {
            continue;
        }
        let mut y = swiglu.kernel.number(1);
        if rotate > 0 {
            let plain = device.scratch(Scratch::Plain, dim as usize)?;
            let x = address(&plain);
            if !prepare(phases, i + 1, &Row { x, prepared: y, weight: 0, eps: 0, weight_offset: 0, rotate }) {
                continue;
            }
            y = x;
            keep.push(plain);
        }
        phases[i - 1].kernel.args[PQ.y] = Arg::Address(y);
        let both = &mut phases[i - 1].sides;
        (both.paired, both.with_signs) = (1, u32::from(rotate > 0));
        phases.remove(i);
    }
    Ok(())
}

/// Attention of one row becomes one phase, of a block a head for few positions and of stretches for many, its rotation the
/// next matrix's.
fn join_attention(device: &Device, phases: &mut Vec<Phase>, keep: &mut Vec<Memory>) -> Result<()> {
    let mut i = 0;
    while i + 3 < phases.len() {
        let [rope, split, combine, _] = &phases[i..i + 4] else { break };
        i += 1;
        let names = [rope.entry, split.entry, combine.entry];
        let params = split.kernel.params(6);
        // AttentionParams: rows, segments, heads, kv_heads, head_dim, .., scale, gated, rotate.
        let [rows, _, heads, kv_heads, head_dim, _, _, _, scale, gated, rotate, ..] = params;
        if names != ["rope_cache", "attention_split", "attention_combine"] || rows != 1 {
            continue;
        }
        let (rope, split, combine) = (rope.kernel.clone(), split.kernel.clone(), combine.kernel.clone());
        let (partial, sums, inner) = (split.number(4), split.number(5), combine.number(4));
        let [groups, _, splits] = split.grid;
        let phase = |entry: &'static str, when: When, grid: [u32; 3], shared: u32, args: Vec<Arg>| {
            let kernel = Kernel { grid, shared, args, ..rope.clone() };
            Phase { entry, when, ..Phase::new(&kernel) }
        };
        let (mut y, mut rotation, mut signs) = (inner, None, rotate);
        if rotate > 0 {
            let plain = device.scratch(Scratch::Plain, (heads * head_dim) as usize)?;
            y = address(&plain);
            keep.push(plain);
            let row = Row { x: y, prepared: inner, weight: 0, eps: 0, weight_offset: 0, rotate };
            if !prepare(phases, i + 2, &row) {
                let mut params = [0; 16];
                params[..3].copy_from_slice(&[1, heads * head_dim, rotate]);
                let args = vec![Arg::Address(y), Arg::Address(inner), Arg::Params(params)];
                signs = 0;
                rotation = Some(phase("rotate", When::Always, [heads * head_dim / rotate, 1, 1], 0, args));
            }
        }
        let [scale, gated, signs] = [scale, gated, signs].map(Arg::Word);
        // As `Call` of kernels/attention_step.cu has them.
        let [ref inputs @ .., _, k_cache, v_cache, turn] = rope.args[..] else { continue };
        let caches = [k_cache, v_cache];
        let to = [y, partial, sums].map(Arg::Address);
        let attend = |count: u32| {
            let rest = [scale, gated, signs, Arg::Word(count)];
            [turn].iter().chain(inputs).chain(&caches).chain(&to).chain(&rest).copied().collect()
        };
        let shared = attention::step_shared(head_dim, heads / groups);
        let near = [heads / kv_heads, kv_heads, 1];
        let far = [groups / kv_heads, kv_heads, splits];
        let joined = [
            phase("attention_step", When::Near, near, shared, attend(1)),
            phase("attention_step", When::Far, far, shared, attend(heads / groups)),
        ];
        phases.splice(i - 1..i + 2, joined.into_iter().chain(rotation));
    }
    Ok(())
}

/// Tells each matrix about the next one.
fn look_ahead(phases: &mut [Phase]) {
    let mut next = None;
    for Phase { kernel, sides, .. } in phases.iter_mut().rev() {
        let Some(places) = Places::of(kernel) else { continue };
        if let Some(next) = next {
            (sides.next, sides.next_tile_bytes, sides.next_row_tiles, sides.next_paired) = next;
        }
        let [out, cols] = [places.out, places.cols].map(|at| kernel.number(at) as u32);
        // What a block's share is counted in, and its bytes.
        let (units, unit_bytes) = match &kernel.matvec {
            Some(matvec) => {
                (out.div_ceil(TILE_ROWS as u32), kernel.number(PQ_CODE_TILES) as u32 * matvec.tile_bytes)
            }
            None => (out, cols * dense_bytes(&kernel.function.unit)),
        };
        next = Some((kernel.number(places.weight), unit_bytes, units, sides.paired));
    }
}

/// Bytes of an element of dense weights.
fn dense_bytes(unit: &Unit) -> u32 {
    if unit.constant("DENSE_DTYPE") == Some(0) { 4 } else { 2 }
}
