//! Compiles the CUDA kernels for the RTX 3090 (sm_86) and the H200 (sm_90): a third of their specialisations on each, all
//! with `FASQ_EVERY_KERNEL=1`. Needs no GPU, only
//! libnvrtc: installed, or named by `FASQ_NVRTC`, as scripts/test.sh does.

use std::path::Path;

use fasq::backend::cuda::device::cache::Entry;
use fasq::backend::cuda::device::unit::Source;
use fasq::backend::cuda::{nvrtc, support};
use rayon::prelude::*;

/// Architectures, and the shared memory that a block may have on each.
const ARCHS: [(u32, u32); 2] = [(86, 99 << 10), (90, 227 << 10)];

/// The compiler's log of a kernel, or its error. Kept in the target folder: whoever changes one kernel does not wait for the
/// others.
fn log(name: &str, source: &str, arch: u32) -> Result<String, String> {
    let (major, minor) = nvrtc::version().unwrap();
    let (version, options) = (format!("{major}.{minor}"), nvrtc::options(&format!("sm_{arch}")).join(" "));
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvrtc");
    let kept = Entry::inside(&folder, &arch.to_string(), "log", &[source, &options, &version]);
    if let Some(log) = kept.read() {
        return Ok(String::from_utf8(log).unwrap());
    }
    let image = nvrtc::compile(name, source, arch, true).map_err(|e| e.to_string())?;
    assert!(!image.bytes.is_empty());
    kept.write(image.log.as_bytes()).unwrap();
    Ok(image.log)
}

/// What a kernel takes of a multiprocessor.
struct Taken {
    arch: u32,
    /// The kernel, and the specialisation.
    name: String,
    /// Threads of a block, where the specialisation says.
    threads: Option<u32>,
    registers: u32,
    /// Bytes of a block.
    shared: u32,
}

impl Taken {
    /// Blocks that are on a multiprocessor together, by each of the things that they share.
    fn blocks(&self) -> Option<u32> {
        let threads = self.threads?;
        let (most_threads, most_shared) = if self.arch < 90 { (1536, 100 << 10) } else { (2048, 228 << 10) };
        // Registers are given out to warps in units of 256; the driver takes 1 KiB of shared memory of each block.
        let of_warp = (self.registers * 32).next_multiple_of(256);
        let by_registers = 65536 / (of_warp * threads / 32);
        Some(by_registers.min(most_threads / threads).min(most_shared / (self.shared + 1024)))
    }

    fn line(&self) -> String {
        let Self { arch, name, registers, shared, .. } = self;
        let blocks = match (self.blocks(), self.threads) {
            (Some(blocks), Some(threads)) => format!("{blocks} x {threads}"),
            _ => "-".to_owned(),
        };
        format!("sm_{arch} {registers:4} {:8.1} {blocks:>10}  {name}", f64::from(*shared) / 1024.0)
    }
}

/// The number before `unit` in the compiler's resource report.
fn number_before(line: &str, unit: &str) -> Option<u32> {
    line.split(unit).next()?.split_whitespace().last()?.parse().ok()
}

#[test]
fn every_kernel_has_a_source() {
    for kernel in fasq::ops::kernels() {
        assert!(Source::ALL.iter().any(|source| source.name() == kernel), "kernels/{kernel}.cu is missing");
    }
}

#[test]
fn specialisations_compile() {
    if let Err(e) = nvrtc::version() {
        crate::skip::cannot_run("CUDA kernels", format!("{e}, as of `pip install nvidia-cuda-nvrtc-cu12`"));
        return;
    }
    // All of them take minutes. Others on each architecture.
    let every = std::env::var_os("FASQ_EVERY_KERNEL").is_some_and(|value| value == "1");
    let units = |(i, (arch, limit)): (usize, (u32, u32))| {
        let (skip, step) = if every { (0, 1) } else { (i, 3) };
        let units = support::units(limit as usize).into_iter().skip(skip).step_by(step);
        units.map(move |(unit, shared)| (unit, shared, arch, limit))
    };
    let jobs: Vec<_> = ARCHS.into_iter().enumerate().flat_map(units).collect();
    let (mut reports, taken): (Vec<_>, Vec<_>) = jobs
        .par_iter()
        .map(|(unit, shared, arch, limit)| {
            let name = format!("{} sm_{arch}", unit.name());
            let log = match log(&unit.name(), &unit.text(), *arch) {
                Ok(log) => log,
                Err(e) => return ((name, vec![e]), Vec::new()),
            };
            let (mut lines, mut taken, mut entry) = (Vec::new(), Vec::new(), "");
            for line in log.lines() {
                let spills = number_before(line, " bytes spill stores").is_some_and(|bytes| bytes > 0);
                let fixed = number_before(line, " bytes smem").unwrap_or(0);
                if spills {
                    lines.push(format!("spills registers: {line}"));
                } else if fixed + shared > *limit {
                    lines.push(format!("{fixed} + {shared} bytes of shared memory, of {limit}"));
                } else if line.contains("warning") {
                    lines.push(line.to_owned());
                }
                entry = line
                    .split("Compiling entry function '")
                    .nth(1)
                    .and_then(|l| l.split('\'').next())
                    .unwrap_or(entry);
                if let Some(registers) = number_before(line, " registers") {
                    let warps = unit.constant("PQ_WARPS").map(|warps| warps * 32);
                    taken.push(Taken {
                        arch: *arch,
                        name: format!("{entry} ({})", unit.name()),
                        threads: unit.constant("PERSISTENT_THREADS").or(warps),
                        registers,
                        shared: fixed + shared,
                    });
                }
            }
            ((name, lines), taken)
        })
        .unzip();
    let mut taken: Vec<Taken> = taken.into_iter().flatten().collect();
    taken.sort_by(|a, b| (a.arch, &a.name).cmp(&(b.arch, &b.name)));
    println!(
        "arch regs shared KiB  blocks x threads of a multiprocessor, where known; kernel (specialisation)"
    );
    taken.iter().for_each(|taken| println!("{}", taken.line()));
    println!("{} images", reports.len());
    reports.retain(|(_, lines)| !lines.is_empty());
    assert!(reports.is_empty(), "{reports:#?}");
}
