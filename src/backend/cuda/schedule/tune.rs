//! Which algorithm multiplies several rows: measured on the device when a matrix first meets a number of rows, and kept on
//! disk beside the compiled kernels, for this device, driver and version of the kernels.

use std::cell::RefCell;
use std::collections::BTreeMap;

use cudarc::driver::sys;

use super::fusions::Choose;
use crate::backend::cuda::device::Device;
use crate::backend::cuda::device::cache::Entry;
use crate::backend::cuda::device::graphs::enqueue;
use crate::backend::cuda::device::launch::Commands;
use crate::backend::cuda::device::memory::driver;
use crate::backend::cuda::device::unit::{PQ_TILE, PRELUDE, Source};
use crate::backend::cuda::lower::weight::Part;
use crate::backend::cuda::lower::{Buffer, Io, Lowering, MatmulAlgorithm, Precision, Weight};
use crate::ops::{LinearParams, Matrix};
use crate::tensor::{Form, Stored};
use crate::{Error, Result};

/// What a measurement stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    spec: String,
    out: usize,
    cols: usize,
    /// Rows of x, to the next power of two.
    rows: u32,
}

/// The algorithms that were measured to be the fastest.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table(BTreeMap<Case, MatmulAlgorithm>);

impl Table {
    /// A line a case: spec, out, in, rows, algorithm.
    fn text(&self) -> String {
        let line = |(case, algorithm): (&Case, &MatmulAlgorithm)| {
            format!("{} {} {} {} {algorithm}\n", case.spec, case.out, case.cols, case.rows)
        };
        self.0.iter().map(line).collect()
    }

    /// None if any line is not one of [`Table::text`].
    fn parse(text: &str) -> Option<Self> {
        let line = |line: &str| {
            let [spec, out, cols, rows, algorithm] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let case = Case {
                spec: String::from(spec),
                out: out.parse().ok()?,
                cols: cols.parse().ok()?,
                rows: rows.parse().ok()?,
            };
            Some((case, MatmulAlgorithm::parse(algorithm)?))
        };
        text.lines().map(line).collect::<Option<_>>().map(Self)
    }
}

/// The algorithm where nothing can be measured, of those that take the rows.
fn default(algorithms: &[MatmulAlgorithm], rows: u32) -> Option<MatmulAlgorithm> {
    use MatmulAlgorithm::{Decoded, Matvec, Tables, Tiles};
    let order = match rows {
        ..=128 => [Tiles, Matvec, Decoded, Tables],
        _ => [Decoded, Tiles, Matvec, Tables],
    };
    order.into_iter().find(|algorithm| algorithms.contains(algorithm))
}

/// Algorithms that are worth measuring for `rows` rows: not the paper's, which wins nowhere.
pub fn candidates(form: &Form, rows: u32, exact: bool, shared_limit: usize) -> Vec<MatmulAlgorithm> {
    let takes = |algorithm: &MatmulAlgorithm| algorithm.takes(form, rows, exact, shared_limit);
    let all: Vec<_> = MatmulAlgorithm::PQ.into_iter().filter(takes).collect();
    let rest: Vec<_> = all.iter().copied().filter(|a| *a != MatmulAlgorithm::Tables).collect();
    if rest.is_empty() { all } else { rest }
}

/// Chooses without a device: for plans that are only looked at.
#[cfg(any(test, feature = "test-support"))]
pub struct Untuned {
    pub shared_limit: usize,
}

#[cfg(any(test, feature = "test-support"))]
impl<W: Matrix> Choose<W> for Untuned {
    fn choose(&self, weight: &W, part: usize, rows: u32) -> Result<MatmulAlgorithm> {
        let form = &weight.parts()[part];
        if rows == 1 {
            return Ok(MatmulAlgorithm::Matvec);
        }
        default(&candidates(form, rows, false, self.shared_limit), rows)
            .ok_or_else(|| nothing_takes(form, rows))
    }
}

fn nothing_takes(form: &Form, rows: u32) -> Error {
    Error::invalid(format!("{form} by {rows} rows"), "no algorithm multiplies this")
}

/// The table of a device, read when it is first wanted, and where it is kept.
pub struct Tuner {
    entry: Option<Entry>,
    table: RefCell<Option<Table>>,
}

impl Tuner {
    pub fn new(device: &Device) -> Self {
        Self::at(entry(device))
    }

    fn at(entry: Option<Entry>) -> Self {
        Self { entry, table: RefCell::default() }
    }

    /// The fastest of some algorithms for a case, as measured by `time` (seconds) now or earlier; none of none.
    fn choose(
        &self,
        case: &Case,
        algorithms: &[MatmulAlgorithm],
        mut time: impl FnMut(MatmulAlgorithm) -> Result<f64>,
    ) -> Option<MatmulAlgorithm> {
        if let [algorithm] = algorithms {
            return Some(*algorithm);
        }
        let read = || Table::parse(std::str::from_utf8(&self.entry.as_ref()?.read()?).ok()?);
        let mut table = self.table.borrow_mut();
        let table = table.get_or_insert_with(|| read().unwrap_or_default());
        if let Some(known) = table.0.get(case).filter(|known| algorithms.contains(known)) {
            return Some(*known);
        }
        let mut times = Vec::new();
        for algorithm in algorithms {
            match time(*algorithm) {
                Ok(seconds) => times.push((*algorithm, seconds)),
                Err(e) => log::warn!("measuring {algorithm}: {e}"),
            }
        }
        let best = times.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(algorithm, _)| *algorithm);
        let Some(best) = best else { return default(algorithms, case.rows) };
        let list: Vec<_> = times.iter().map(|(name, s)| format!("{name} {:.1} us", s * 1e6)).collect();
        let Case { spec, out, cols, rows } = case;
        log::info!("measured once, {spec} [{out}, {cols}] by {rows} rows: {}", list.join(", "));
        table.0.insert(case.clone(), best);
        if let Some(Err(e)) = self.entry.as_ref().map(|entry| entry.write(table.text().as_bytes())) {
            log::warn!("what was measured cannot be kept: {e}");
        }
        Some(best)
    }
}

/// The table's file: of this device, driver and version of the kernels.
fn entry(device: &Device) -> Option<Entry> {
    let mut version = 0;
    // SAFETY: the pointer is valid for writing.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
    let (arch, version) = (device.capabilities.arch.to_string(), version.to_string());
    let mut inputs = vec![device.name(), &arch, &version, PRELUDE, PQ_TILE];
    inputs.extend(MEASURED.iter().map(|source| source.text()));
    Entry::of("algorithms", "txt", &inputs)
}

/// The kernels that the table is about.
const MEASURED: &[Source] = &[
    Source::PqMatvec,
    Source::PqRows,
    Source::PqMatvecSubspace,
    Source::PqSumParts,
    Source::PqMatmul,
    Source::PqMatmulTiles,
    Source::PackRows,
];

/// Bytes that are written between two measurements, so that codes are not in L2.
const COLD_BYTES: usize = 128 << 20;
/// Measurements of an algorithm, of which the best counts; fewer where one takes this many seconds.
const REPEAT: usize = 4;
const LONG: f64 = 2e-3;

/// Weights of a matrix below which nothing is measured: compiling the candidates would take longer than the best one saves.
/// In the built-in model matvec won all 25 cases.
const SMALL: usize = 1 << 22;

/// Chooses by measurements on the device.
pub struct Tuned<'a> {
    pub lowering: &'a Lowering,
    pub tuner: &'a Tuner,
    /// Takes this one wherever it multiplies the rows.
    pub forced: Option<MatmulAlgorithm>,
}

impl Choose<Weight> for Tuned<'_> {
    fn choose(&self, weight: &Weight, part: usize, rows: u32) -> Result<MatmulAlgorithm> {
        let (form, part) = (&weight.parts()[part], &weight.parts[part]);
        let exact = self.lowering.precision == Precision::Single;
        let limit = self.lowering.capabilities().shared_limit;
        if let Some(forced) = self.forced.filter(|forced| forced.takes(form, rows, exact, limit)) {
            return Ok(forced);
        }
        let (matvec, small) = (MatmulAlgorithm::Matvec, form.rows * form.cols < SMALL);
        if rows == 1 || (exact || small) && matvec.takes(form, rows, exact, limit) {
            return Ok(matvec);
        }
        let algorithms = candidates(form, rows, exact, limit);
        if small {
            return default(&algorithms, rows).ok_or_else(|| nothing_takes(form, rows));
        }
        let Stored::Pq(spec) = form.stored else { return Err(nothing_takes(form, rows)) };
        let (out, cols) = (form.rows, form.cols);
        let case = Case { spec: spec.to_string(), out, cols, rows: rows.next_power_of_two() };
        let best = self.tuner.choose(&case, &algorithms, |algorithm| self.time(algorithm, part, cols, rows));
        best.ok_or_else(|| nothing_takes(form, rows))
    }
}

impl Tuned<'_> {
    /// Seconds that an algorithm takes, on inputs of zeros.
    fn time(&self, algorithm: MatmulAlgorithm, part: &Part, cols: usize, rows: u32) -> Result<f64> {
        let device = &self.lowering.device;
        let stride = part.first + part.rows;
        let count = rows as usize * cols;
        let x = Buffer::new(device.alloc(count, true)?, count);
        let y = device.alloc(rows as usize * stride, false)?;
        let params = LinearParams { rows, y_stride: stride as u32, y_offset: 0, accumulate: 0 };
        let io = Io { x: x.memory(), bias: None, y: &y, first: 0, cols, params };
        let mut commands = Commands::default();
        self.lowering.alone(&mut commands, algorithm, part, &x, &io)?;
        let mut best = f64::MAX;
        for run in 0..=REPEAT {
            let _cold = device.alloc(COLD_BYTES / 4, true)?;
            let [start, end] = [device.event()?, device.event()?];
            start.record(&device.stream).map_err(driver)?;
            enqueue(device, &commands)?;
            end.record(&device.stream).map_err(driver)?;
            let seconds = f64::from(start.elapsed_ms(&end).map_err(driver)?) / 1e3;
            // The first run loads libraries and code.
            if run > 0 {
                best = best.min(seconds);
                if seconds > LONG {
                    break;
                }
            }
        }
        Ok(best)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use MatmulAlgorithm::{Decoded, Matvec, Tables, Tiles};

    fn case(rows: u32) -> Case {
        Case { spec: "2-256@universal".into(), out: 4096, cols: 4096, rows }
    }

    /// 2 us for tiles, more for the others.
    fn seconds(algorithm: MatmulAlgorithm) -> f64 {
        if algorithm == Tiles { 2e-6 } else { 5e-6 }
    }

    #[test]
    fn the_fastest_is_measured_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let entry = |key| Entry::inside(&directory.path().join("deep"), "algorithms", "txt", &[key]);
        let all = [Decoded, Tiles, Matvec];
        let measure = |key| {
            let mut measured = 0;
            let chosen = Tuner::at(Some(entry(key))).choose(&case(16), &all, |algorithm| {
                measured += 1;
                Ok(seconds(algorithm))
            });
            assert_eq!(chosen, Some(Tiles));
            measured
        };
        assert_eq!([measure("ours"), measure("ours"), measure("another device's")], [3, 0, 3]);
        // One that is kept and does not serve now is not taken.
        let two = [Decoded, Matvec];
        assert_eq!(Tuner::at(Some(entry("ours"))).choose(&case(16), &two, |_| Ok(1.0)), Some(Decoded));
        // A damaged table, or one with an unknown algorithm, is measured anew.
        let mut bytes = std::fs::read(entry("ours").path()).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(entry("ours").path(), bytes).unwrap();
        assert_eq!([measure("ours"), measure("ours")], [3, 0]);
        entry("ours").write(b"2-256@universal 4096 4096 16 sideways\n").unwrap();
        assert_eq!(measure("ours"), 3);
    }

    #[test]
    fn without_measurements_there_is_a_default() {
        let fails = |_| Err(Error::backend("cuda", "no device"));
        let choose = |rows, all: &[MatmulAlgorithm]| Tuner::at(None).choose(&case(rows), all, fails);
        assert_eq!(choose(16, &MatmulAlgorithm::PQ), Some(Tiles));
        assert_eq!(choose(512, &MatmulAlgorithm::PQ), Some(Decoded));
        assert_eq!(choose(512, &[Tables, Tiles]), Some(Tiles));
        assert_eq!(choose(4, &[Tables]), Some(Tables));
        assert_eq!(choose(4, &[]), None);
        // Nowhere to write to: measured all the same.
        let nowhere = Entry::inside("/proc/nowhere".as_ref(), "algorithms", "txt", &[]);
        let chosen = Tuner::at(Some(nowhere)).choose(&case(4), &MatmulAlgorithm::PQ, |a| Ok(seconds(a)));
        assert_eq!(chosen, Some(Tiles));
    }

    #[test]
    fn a_table_survives_being_text() {
        let all = MatmulAlgorithm::PQ.into_iter().enumerate();
        let table = Table(all.map(|(i, algorithm)| (case(1 << i), algorithm)).collect());
        assert_eq!(Table::parse(&table.text()), Some(table));
        for bad in ["2-256 1 2", "2-256 1 2 x tiles", "2-256 1 2 4 tiles more"] {
            assert_eq!(Table::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_papers_algorithm_is_not_measured() {
        let form = Form { rows: 4096, cols: 4096, stored: Stored::Pq("2-256@universal".parse().unwrap()) };
        for rows in [2, 16, 512] {
            assert!(!candidates(&form, rows, false, 227 << 10).contains(&Tables), "{rows} rows");
        }
    }
}
