//! Steps: runs of recorded launches that become the phases of one launch (kernels/step.cu), with what neighbouring
//! operations do to a row between two matrices moved into the matrices' own kernels.

use super::commands::{Arg, Kernel, Work};
use super::device::{Device, Memory, Scratch, address};
use super::kernels::{self, Cache, TILE_ROWS, Unit};
use crate::Result;

/// The launches that can be phases, by their entry's name, with the file that it is in and a constant without which the
/// file cannot be compiled.
const PHASES: &[(&str, &str, Option<&str>)] = &[
    ("pq_matvec_shared", "pq_matvec", Some("PQ_TOKENS")),
    ("dense_row", "dense_row", Some("DENSE_DTYPE")),
    ("rms_norm", "rms_norm", None),
    ("swiglu", "swiglu", None),
    ("gather_rows", "gather_rows", None),
    ("embed_pq", "embed", Some("PQ_D")),
    ("rope_cache", "rope_cache", Some("HEAD_DIM_MAX")),
    ("attention_near", "attention", Some("HEAD_DIM")),
    ("attention_split", "attention", Some("HEAD_DIM")),
    ("attention_combine", "attention", Some("HEAD_DIM")),
];

/// Bytes of the next matrix that a block asks for while it waits for others.
const AHEAD: u32 = 64 << 10;

/// Positions that a row sees, at most, where attention takes them in one stretch.
const NEAR: u32 = 512;

/// Arguments of a phase in 8-byte slots, at most.
const ARGUMENTS: usize = 37;

/// Places of a matrix's arguments.
struct Places {
    weight: usize,
    x: usize,
    out: usize,
    cols: usize,
    /// The first of five: norm, prepared row, input, next matrix, what is ahead of it.
    norm: usize,
}

/// Of pq_matvec_shared, which has code tiles and a chunk of columns behind `cols`.
const PQ: Places = Places { weight: 0, x: 4, out: 6, cols: 7, norm: 11 };
const PQ_CODE_TILES: usize = 8;
const PQ_CHUNK: usize = 9;
/// Of dense_row.
const DENSE: Places = Places { weight: 0, x: 2, out: 4, cols: 5, norm: 7 };

impl Places {
    fn of(kernel: &Kernel) -> Option<&'static Self> {
        match kernel.function.entry {
            "pq_matvec_shared" => Some(&PQ),
            "dense_row" => Some(&DENSE),
            _ => None,
        }
    }
}

/// The source of a step: the files that its constants suffice for, each in a namespace, then step.cu.
pub fn source(unit: &Unit, head: &str) -> String {
    let mut source = String::new();
    for (i, (entry, _, _)) in PHASES.iter().enumerate() {
        source += &format!("#define PHASE_{entry} {i}\n");
    }
    source += head;
    let mut files: Vec<_> = PHASES.iter().map(|(_, file, needs)| (*file, *needs)).collect();
    files.dedup();
    for (file, needs) in files {
        if needs.is_none_or(|name| unit.constant(name).is_some()) {
            source += &format!("namespace {file} {{\n{}}}\n", kernels::text(file));
        }
    }
    source + kernels::text("step")
}

/// A step's unit for matrices of `matvec` and what else its phases are specialised for.
fn unit(others: &Unit, table: u32, threads: u32) -> Unit {
    let step = [
        ("STEP", 1),
        ("STEP_TABLE", table),
        ("STEP_THREADS", threads),
        ("STEP_ARGUMENTS", ARGUMENTS as u32),
        ("STEP_NEAR", NEAR),
    ];
    Unit::new("step", &step).joined(others).unwrap_or(*others)
}

/// A step with every phase, for tests that compile it.
pub fn example(matrix: &Unit, table: u32, warps: u32) -> Unit {
    let all = [kernels::rope_cache(Cache::F16), kernels::attention(128, 4, 16, Cache::F16)];
    let join = |all: Unit, one: &Unit| all.joined(one).unwrap_or(all);
    unit(&all.iter().fold(*matrix, join), table, warps * 32)
}

/// Work with its runs of phases as steps, and the memory of their programs.
pub fn plan(device: &Device, work: &[Work]) -> Result<(Vec<Work>, Vec<Memory>)> {
    // A delta net's operations are no phases, and steps between them are slower than launches that overlap; with several
    // sequences a matrix is work enough for a launch of its own.
    let better_apart = |work: &Work| match work {
        Work::Kernel(kernel) => {
            kernel.function.entry == "delta_rule" || kernel.matvec.as_ref().is_some_and(|m| m.tokens > 1)
        }
        Work::Gemm(_) => false,
    };
    if work.iter().any(better_apart) {
        return Ok((work.to_vec(), Vec::new()));
    }
    let (mut planned, mut programs) = (Vec::with_capacity(work.len()), Vec::new());
    let mut run: Vec<&Kernel> = Vec::new();
    let mut constants = Unit::new("step", &[]);
    for work in work {
        let joined = match work {
            Work::Kernel(kernel) => phase(kernel).and_then(|_| constants.joined(&kernel.function.unit)),
            Work::Gemm(_) => None,
        };
        if joined.is_none() {
            finish(device, &run, &constants, &mut planned, &mut programs)?;
            run.clear();
            constants = Unit::new("step", &[]);
        }
        match work {
            Work::Kernel(kernel) if phase(kernel).is_some() => {
                constants = joined.or_else(|| constants.joined(&kernel.function.unit)).unwrap_or(constants);
                run.push(kernel);
            }
            _ => planned.push(work.clone()),
        }
    }
    finish(device, &run, &constants, &mut planned, &mut programs)?;
    Ok((planned, programs))
}

/// The number of a kernel's phase.
fn phase(kernel: &Kernel) -> Option<usize> {
    PHASES.iter().position(|(entry, _, _)| *entry == kernel.function.entry)
}

/// Appends a run of phases to `planned`: as a step, or as they are where they do not make one.
fn finish(
    device: &Device,
    run: &[&Kernel],
    constants: &Unit,
    planned: &mut Vec<Work>,
    programs: &mut Vec<Memory>,
) -> Result<()> {
    let step = if run.len() > 1 { step(device, run, constants, programs)? } else { None };
    match step {
        Some(step) => planned.push(Work::Kernel(step)),
        None => planned.extend(run.iter().map(|kernel| Work::Kernel((*kernel).clone()))),
    }
    Ok(())
}

/// A launch on its way into a step.
struct Phase {
    entry: &'static str,
    kernel: Kernel,
    /// For which rows it is done.
    when: When,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Always,
    /// Where the step's first row sees few positions, or many.
    Near,
    Far,
}

fn step(
    device: &Device,
    run: &[&Kernel],
    constants: &Unit,
    programs: &mut Vec<Memory>,
) -> Result<Option<Kernel>> {
    if !run.iter().any(|kernel| Places::of(kernel).is_some()) {
        return Ok(None);
    }
    let matvec = run.iter().find_map(|kernel| kernel.matvec.as_ref());
    let table = matvec.map_or(0, |matvec| matvec.table);
    let threads = matvec.map_or(kernels::DENSE_ROW_WARPS, |matvec| matvec.warps) * 32;
    let phase = |kernel: &&Kernel| Phase {
        entry: kernel.function.entry,
        kernel: (*kernel).clone(),
        when: When::Always,
    };
    let mut phases: Vec<Phase> = run.iter().map(phase).collect();
    let rows =
        phases.iter().find(|phase| phase.entry == "rope_cache").map_or(0, |phase| number(&phase.kernel, 4));
    move_norms(&mut phases);
    add_near(device, &mut phases, programs)?;
    look_ahead(&mut phases);
    let beside = |kernel: &Kernel| match &kernel.matvec {
        Some(matvec) => kernel.shared - matvec.table,
        None => kernel.shared,
    };
    let shared = table + phases.iter().map(|phase| beside(&phase.kernel)).max().unwrap_or(0);
    let function = device.function(unit(constants, table, threads), "step")?;
    if shared > function.dynamic_limit {
        return Ok(None);
    }
    let words: Vec<u64> = (0..phases.len()).flat_map(|i| words(&phases, i)).collect();
    let program = device.alloc(words.len() * 2, false)?;
    device.write(&program, bytemuck::cast_slice(&words))?;
    let args = vec![Arg::Address(address(&program)), Arg::Word(phases.len() as u32), Arg::Address(rows)];
    programs.push(program);
    let grid = [device.sms, 1, 1];
    Ok(Some(Kernel { function, grid, block: threads, shared, args, matvec: None, resident: true }))
}

/// A phase as step.cu reads it.
fn words(phases: &[Phase], i: usize) -> Vec<u64> {
    let Phase { entry, kernel, .. } = &phases[i];
    let next =
        |not: When| (i + 1..phases.len()).find(|i| phases[*i].when != not).unwrap_or(phases.len()) as u64;
    let [x, y, z] = kernel.grid.map(u64::from);
    let kind = PHASES.iter().position(|(known, _, _)| known == entry).unwrap_or(PHASES.len()) as u64;
    let mut words = vec![kind | x << 32, y | z << 32, next(When::Far) | next(When::Near) << 32];
    for arg in &kernel.args {
        match arg {
            Arg::Address(value) => words.push(*value),
            Arg::Word(value) => words.push(u64::from(*value)),
            Arg::Params(all) => {
                words.extend(all.chunks_exact(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32));
            }
        }
    }
    words.resize(3 + ARGUMENTS, 0);
    words
}

pub fn number(kernel: &Kernel, at: usize) -> u64 {
    match &kernel.args[at] {
        Arg::Address(value) => *value,
        Arg::Word(value) => u64::from(*value),
        Arg::Params(_) => 0,
    }
}

pub fn params(kernel: &Kernel, at: usize) -> [u32; 16] {
    match &kernel.args[at] {
        Arg::Params(words) => *words,
        _ => [0; 16],
    }
}

/// Makes `kernel` prepare its row itself; false where it cannot.
fn prepare(kernel: &mut Kernel, x: u64, norm: u64, prepared: u64, input: [u32; 3]) -> bool {
    let Some(places) = Places::of(kernel) else { return false };
    if number(kernel, places.x) != prepared {
        return false;
    }
    match &kernel.matvec {
        Some(matvec) => {
            let (tiles, cols) = (number(kernel, PQ_CODE_TILES) as u32, number(kernel, PQ.cols) as u32);
            if !matvec.prepares(tiles, cols) {
                return false;
            }
            let passes = matvec.passes(tiles);
            kernel.shared = matvec.shared(passes, cols);
            kernel.args[PQ_CHUNK] = Arg::Word(passes);
        }
        None if input[2] > 0 || norm == 0 => return false, // dense weights want no rotation
        None => {}
    }
    let mut words = [0; 16];
    words[..3].copy_from_slice(&input);
    kernel.args[places.x] = Arg::Address(x);
    kernel.args[places.norm] = Arg::Address(norm);
    kernel.args[places.norm + 1] = Arg::Address(prepared);
    kernel.args[places.norm + 2] = Arg::Params(words);
    true
}

/// Norms of one row move into the matrix behind them.
fn move_norms(phases: &mut Vec<Phase>) {
    let mut i = 0;
    while i + 1 < phases.len() {
        let (before, behind) = phases.split_at_mut(i + 1);
        let (norm, next) = (&before[i], &mut behind[0].kernel);
        // RmsNormParams: rows, dim, eps, weight_offset, rotate.
        let moved = norm.entry == "rms_norm" && {
            let norm = &norm.kernel;
            let [rows, _, eps, offset, rotate, ..] = params(norm, 3);
            rows == 1
                && prepare(next, number(norm, 0), number(norm, 1), number(norm, 2), [eps, offset, rotate])
        };
        if moved {
            phases.remove(i);
        }
        i += 1;
    }
}

/// Gives attention of one row a second way, for few positions, and its rotation to the matrix behind it.
fn add_near(device: &Device, phases: &mut Vec<Phase>, keep: &mut Vec<Memory>) -> Result<()> {
    let mut i = 0;
    while i + 3 < phases.len() {
        let [rope, split, combine, out] = &mut phases[i..i + 4] else { break };
        i += 1;
        let names = [rope.entry, split.entry, combine.entry];
        let [rows, _, heads, _, head_dim, _, _, _, scale, gated, rotate, ..] = match names {
            ["rope_cache", "attention_split", "attention_combine"] => params(&split.kernel, 6),
            _ => continue,
        };
        if rows != 1 {
            continue;
        }
        let mut y = number(&combine.kernel, 4);
        if rotate > 0 {
            let plain = device.scratch(Scratch::Attention, (heads * head_dim) as usize)?;
            if !prepare(&mut out.kernel, address(&plain), 0, y, [0, 0, rotate]) {
                continue;
            }
            y = address(&plain);
            let mut words = params(&combine.kernel, 5);
            words[10] = 0;
            combine.kernel.args[4] = Arg::Address(y);
            combine.kernel.args[5] = Arg::Params(words);
            keep.push(plain);
        }
        let mut near = rope.kernel.clone();
        near.grid = [heads, 1, 1];
        near.args.remove(4);
        near.args.insert(6, Arg::Address(y));
        near.args.extend([Arg::Word(scale), Arg::Word(gated)]);
        near.shared = split.kernel.shared;
        for far in [rope, split, combine] {
            far.when = When::Far;
        }
        phases.insert(i - 1, Phase { entry: "attention_near", kernel: near, when: When::Near });
        i += 4;
    }
    Ok(())
}

/// Tells each matrix about the next one.
fn look_ahead(phases: &mut [Phase]) {
    let mut next = None;
    for kernel in phases.iter_mut().rev().map(|phase| &mut phase.kernel) {
        let Some(places) = Places::of(kernel) else { continue };
        if let Some((weight, ahead)) = next {
            kernel.args[places.norm + 3] = Arg::Address(weight);
            kernel.args[places.norm + 4] = Arg::Params(ahead);
        }
        let (out, cols) = (number(kernel, places.out) as u32, number(kernel, places.cols) as u32);
        // What a block's share is counted in, and its bytes.
        let (units, unit_bytes) = match &kernel.matvec {
            Some(matvec) => {
                (out.div_ceil(TILE_ROWS as u32), number(kernel, PQ_CODE_TILES) as u32 * matvec.tile_bytes)
            }
            None => (out, cols * dense_bytes(&kernel.function.unit)),
        };
        let mut ahead = [0; 16];
        ahead[..3].copy_from_slice(&[unit_bytes, units, AHEAD]);
        next = Some((number(kernel, places.weight), ahead));
    }
}

/// Bytes of an element of dense weights.
fn dense_bytes(unit: &Unit) -> u32 {
    if unit.constant("DENSE_DTYPE") == Some(0) { 4 } else { 2 }
}
