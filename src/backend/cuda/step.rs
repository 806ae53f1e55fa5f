//! Steps: runs of recorded launches that become the phases of one launch (kernels/step.cu), with what neighbouring
//! operations do to a row between two matrices moved into the matrices' own kernels (fuse.rs).

use super::attention;
use super::commands::{Arg, Kernel, Work};
use super::device::Device;
use super::fuse::{self, Phase, When};
use super::kernels::{self, Cache};
use super::memory::{Memory, address};
use super::pack;
use super::unit::{PHASES, Unit};
use crate::Result;

/// Launches that become part of other phases.
const JOINED: &[&str] = &["rope_cache", "attention_split", "attention_combine"];

/// Positions that a row sees, at most, where attention takes them in one stretch.
const NEAR: u32 = 256;

/// Arguments of a phase in 8-byte slots, at most.
const ARGUMENTS: usize = 34;

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
    let all = [kernels::rope_cache(128, Cache::F16), attention::by_splits(128, 4, 16, Cache::F16)];
    let join = |all: Unit, one: &Unit| all.joined(one).unwrap_or(all);
    unit(&all.iter().fold(*matrix, join), table, warps * 32)
}

/// Work with its runs of phases as steps, and the memory of their programs.
pub fn plan(device: &Device, work: &[Work]) -> Result<(Vec<Work>, Vec<Memory>)> {
    // A delta net's operations are no phases, and steps between them are slower than launches that overlap.
    let delta = |work: &Work| match work {
        Work::Kernel(kernel) => ["delta_rule", "delta_chunks"].contains(&kernel.function.entry),
        Work::Gemm(_) => false,
    };
    if work.iter().any(delta) {
        return Ok((work.to_vec(), Vec::new()));
    }
    let (mut planned, mut programs) = (Vec::with_capacity(work.len()), Vec::new());
    let mut run: Vec<&Kernel> = Vec::new();
    let mut constants = Unit::new("step", &[]);
    for work in work {
        let joined = match work {
            Work::Kernel(kernel) if fits(kernel) => constants.joined(&kernel.function.unit),
            _ => None,
        };
        if joined.is_none() {
            finish(device, &run, &constants, &mut planned, &mut programs)?;
            run.clear();
            constants = Unit::new("step", &[]);
        }
        match work {
            Work::Kernel(kernel) if fits(kernel) => {
                constants = joined.or_else(|| constants.joined(&kernel.function.unit)).unwrap_or(constants);
                run.push(kernel);
            }
            _ => planned.push(work.clone()),
        }
    }
    finish(device, &run, &constants, &mut planned, &mut programs)?;
    Ok((planned, programs))
}

/// The number of the phases with this entry.
fn kind(entry: &str) -> Option<usize> {
    PHASES.iter().position(|(known, _, _)| *known == entry)
}

/// Whether a launch can be of a step.
fn fits(kernel: &Kernel) -> bool {
    let phase = kind(kernel.function.entry).is_some() && !pack::packs(kernel);
    phase || JOINED.contains(&kernel.function.entry)
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

/// The run as one launch, and what it reads in `programs`; none where it cannot be one.
fn step(
    device: &Device,
    run: &[&Kernel],
    constants: &Unit,
    programs: &mut Vec<Memory>,
) -> Result<Option<Kernel>> {
    if !run.iter().any(|kernel| fuse::Places::of(kernel).is_some()) {
        return Ok(None);
    }
    let matvec = run.iter().find_map(|kernel| kernel.matvec.as_ref());
    let table = matvec.map_or(0, |matvec| matvec.table);
    let threads = matvec.map_or(kernels::DENSE_ROW_WARPS, |matvec| matvec.warps) * 32;
    let mut phases: Vec<Phase> = run.iter().map(|kernel| Phase::new(kernel)).collect();
    let rows =
        phases.iter().find(|phase| phase.entry == "rope_cache").map_or(0, |phase| phase.kernel.number(4));
    fuse::all(device, &mut phases, programs)?;
    if phases.iter().any(|phase| kind(phase.entry).is_none()) {
        return Ok(None);
    }
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
    let Phase { entry, kernel, sides, .. } = &phases[i];
    let next =
        |not: When| (i + 1..phases.len()).find(|i| phases[*i].when != not).unwrap_or(phases.len()) as u64;
    let [x, y, z] = kernel.grid.map(u64::from);
    let kind = kind(entry).unwrap_or(PHASES.len()) as u64;
    let mut words = vec![kind | x << 32, y | z << 32, next(When::Far) | next(When::Near) << 32, 0];
    let besides = sides.args(kernel);
    for arg in kernel.args.iter().chain(&besides) {
        match arg {
            Arg::Address(value) => words.push(*value),
            Arg::Word(value) => words.push(u64::from(*value)),
            Arg::Params(all) => {
                words.extend(all.chunks_exact(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32));
            }
        }
    }
    words.resize(4 + ARGUMENTS, 0);
    words
}
