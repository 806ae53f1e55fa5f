//! Which way several rows are multiplied ([`Way`]): measured on the device when a matrix first meets a number of rows,
//! and kept on disk beside the compiled kernels, for this device, driver and version of the kernels.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use cudarc::driver::sys;

use super::commands::Commands;
use super::device::Device;
use super::graphs::Graphs;
use super::io::{Io, Ready};
use super::matmul::Way;
use super::memory::driver;
use super::nvrtc;
use super::weight::{Part, Pq};
use super::{Cuda, Precision, unit};
use crate::Result;
use crate::ops::LinearParams;

/// What a measurement stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Case {
    spec: String,
    out: usize,
    cols: usize,
    /// Rows of x, to the next power of two.
    rows: u32,
}

/// The ways that were measured to be the fastest.
#[derive(Debug, Default, PartialEq, Eq)]
struct Table(BTreeMap<Case, Way>);

impl Table {
    /// A line a case: spec, out, in, rows, way.
    fn text(&self) -> String {
        let line = |(case, way): (&Case, &Way)| {
            format!("{} {} {} {} {}\n", case.spec, case.out, case.cols, case.rows, way.name())
        };
        self.0.iter().map(line).collect()
    }

    /// None if any line is not one of [`Table::text`].
    fn parse(text: &str) -> Option<Self> {
        let line = |line: &str| {
            let [spec, out, cols, rows, way] = line.split(' ').collect::<Vec<_>>().try_into().ok()?;
            let case = Case {
                spec: String::from(spec),
                out: out.parse().ok()?,
                cols: cols.parse().ok()?,
                rows: rows.parse().ok()?,
            };
            Some((case, Way::parse(way)?))
        };
        text.lines().map(line).collect::<Option<_>>().map(Self)
    }
}

/// The way where nothing can be measured.
fn default(ways: &[Way], rows: u32) -> Way {
    let order: &[Way] = match rows {
        ..=128 => &[Way::Tiles, Way::Matvec, Way::Decoded, Way::Tables],
        _ => &[Way::Decoded, Way::Tiles, Way::Matvec, Way::Tables],
    };
    order.iter().copied().find(|way| ways.contains(way)).unwrap_or(Way::Tables)
}

/// The table of a device, read when it is first wanted, and where it is kept.
pub struct Tuner {
    place: Option<Place>,
    table: RefCell<Option<Table>>,
}

impl Tuner {
    pub fn new(device: &Device) -> Self {
        Self::at(Place::of(device))
    }

    fn at(place: Option<Place>) -> Self {
        Self { place, table: RefCell::default() }
    }

    /// The fastest of `ways` for a case, as measured by `time` (seconds) now or earlier.
    fn choose(&self, case: &Case, ways: &[Way], mut time: impl FnMut(Way) -> Result<f64>) -> Way {
        if let [way] = ways {
            return *way;
        }
        let mut table = self.table.borrow_mut();
        let table =
            table.get_or_insert_with(|| self.place.as_ref().and_then(Place::read).unwrap_or_default());
        if let Some(way) = table.0.get(case).filter(|way| ways.contains(way)) {
            return *way;
        }
        let mut times = Vec::new();
        for way in ways {
            match time(*way) {
                Ok(seconds) => times.push((*way, seconds)),
                Err(e) => log::debug!("measuring {}: {e}", way.name()),
            }
        }
        let best = times.iter().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(way, _)| *way);
        let Some(best) = best else { return default(ways, case.rows) };
        let list: Vec<_> = times.iter().map(|(way, s)| format!("{} {:.1} us", way.name(), s * 1e6)).collect();
        let Case { spec, out, cols, rows } = case;
        log::info!("measured once, {spec} [{out}, {cols}] by {rows} rows: {}", list.join(", "));
        table.0.insert(case.clone(), best);
        if let Some(Err(e)) = self.place.as_ref().map(|place| place.write(table)) {
            log::debug!("the table of measured ways: {e}");
        }
        best
    }
}

/// The table's file, and what it is valid for.
struct Place {
    path: PathBuf,
    key: u64,
}

impl Place {
    fn of(device: &Device) -> Option<Self> {
        let mut version = 0;
        // SAFETY: the pointer is valid for writing.
        unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().ok()?;
        let sources: Vec<_> =
            ["prelude", "pq_tile"].iter().chain(WAYS).map(|file| unit::text(file)).collect();
        let key = nvrtc::digest(&(device.name(), device.arch, version, sources));
        Some(Self { path: nvrtc::directory()?.join(format!("ways-{key:016x}.txt")), key })
    }

    fn read(&self) -> Option<Table> {
        Table::parse(std::str::from_utf8(&nvrtc::read(&self.path, self.key)?).ok()?)
    }

    fn write(&self, table: &Table) -> std::io::Result<()> {
        nvrtc::write(&self.path, self.key, table.text().as_bytes())
    }
}

/// The kernels that the table is about.
const WAYS: &[&str] = &[
    "pq_matvec",
    "pq_rows",
    "pq_matvec_subspace",
    "pq_matmul",
    "pq_matmul_tables",
    "pq_matmul_tiles",
    "pack_rows",
];

/// Bytes that are written between two measurements, so that codes are not in L2.
const COLD_BYTES: usize = 128 << 20;
/// Measurements of a way, of which the best counts; fewer where one takes this many seconds.
const REPEAT: usize = 4;
const LONG: f64 = 2e-3;

impl Cuda {
    /// The way to multiply `rows` rows by a part.
    pub(super) fn way(&self, pq: &Pq, part: &Part, cols: usize, rows: u32) -> Result<Way> {
        let exact = self.precision == Precision::Single;
        if let Some(way) = self.forced.filter(|way| way.takes(pq, part.rows, rows, exact)) {
            return Ok(way);
        }
        if rows == 1 || exact && Way::Matvec.takes(pq, part.rows, rows, exact) {
            return Ok(Way::Matvec);
        }
        let ways: Vec<_> = Way::ALL.into_iter().filter(|way| way.takes(pq, part.rows, rows, exact)).collect();
        let case = Case { spec: pq.spec.to_string(), out: part.rows, cols, rows: rows.next_power_of_two() };
        Ok(self.tuner.choose(&case, &ways, |way| self.time(way, pq, part, cols, rows)))
    }

    /// Seconds that a way takes, on inputs of zeros.
    fn time(&self, way: Way, pq: &Pq, part: &Part, cols: usize, rows: u32) -> Result<f64> {
        let device = &self.device;
        let stride = part.first + part.rows;
        let x = device.alloc(rows as usize * cols, true)?;
        let y = device.alloc(rows as usize * stride, false)?;
        let params = LinearParams { rows, y_stride: stride as u32, y_offset: 0, accumulate: 0 };
        let io = Io { x: &x, bias: None, y: &y, first: 0, params };
        let mut commands = Commands::default();
        self.pq_by(&mut commands, way, pq, part, cols, &io, &mut Ready::default())?;
        let mut best = f64::MAX;
        for run in 0..=REPEAT {
            let _cold = device.alloc(COLD_BYTES / 4, true)?;
            let [start, end] = [device.event()?, device.event()?];
            start.record(&device.stream).map_err(driver)?;
            Graphs::default().once(device, &commands)?;
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
    use crate::Error;

    fn case(rows: u32) -> Case {
        Case { spec: "2-256@universal".into(), out: 4096, cols: 4096, rows }
    }

    /// 2 us for tiles, more for the others.
    fn seconds(way: Way) -> f64 {
        if way == Way::Tiles { 2e-6 } else { 5e-6 }
    }

    #[test]
    fn the_fastest_is_measured_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let tuner = || Tuner::at(Some(Place { path: directory.path().join("deep/ways.txt"), key: 7 }));
        let ways = [Way::Decoded, Way::Tiles, Way::Tables];
        let mut measured = 0;
        for _ in 0..2 {
            let way = tuner().choose(&case(16), &ways, |way| {
                measured += 1;
                Ok(seconds(way))
            });
            assert_eq!((way, measured), (Way::Tiles, 3));
        }
        // A kept way that does not serve now is not taken.
        let way = tuner().choose(&case(16), &[Way::Decoded, Way::Tables], |_| Ok(1.0));
        assert_eq!(way, Way::Decoded);
    }

    #[test]
    fn a_damaged_table_is_measured_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ways.txt");
        let ways = [Way::Decoded, Way::Tiles];
        let measure = |key| {
            let mut measured = 0;
            let time = |way| {
                measured += 1;
                Ok(seconds(way))
            };
            let tuner = Tuner::at(Some(Place { path: path.clone(), key }));
            assert_eq!(tuner.choose(&case(4), &ways, time), Way::Tiles);
            measured
        };
        assert_eq!([measure(7), measure(7)], [2, 0]);
        let whole = std::fs::read(&path).unwrap();
        for damage in [whole.len() / 2, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[damage] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert_eq!([measure(7), measure(7)], [2, 0], "a flipped bit at {damage}");
        }
        std::fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        assert_eq!([measure(7), measure(7)], [2, 0], "cut off");
        assert_eq!([measure(8), measure(7)], [2, 2], "another device's");
        nvrtc::write(&path, 7, b"2-256@universal 4096 4096 16 sideways\n").unwrap();
        assert_eq!(measure(7), 2, "an unknown way");
    }

    #[test]
    fn without_measurements_there_is_a_default() {
        let fails = |_| Err(Error::backend("cuda", "no device"));
        let ways = [Way::Matvec, Way::Tiles, Way::Tables, Way::Decoded];
        let choose = |rows, ways: &[Way]| Tuner::at(None).choose(&case(rows), ways, fails);
        assert_eq!(choose(16, &ways), Way::Tiles);
        assert_eq!(choose(512, &ways), Way::Decoded);
        assert_eq!(choose(512, &[Way::Tables, Way::Tiles]), Way::Tiles);
        assert_eq!(choose(4, &[Way::Tables]), Way::Tables);
        // Nowhere to write to: measured all the same.
        let nowhere = Tuner::at(Some(Place { path: "/proc/nowhere/ways.txt".into(), key: 1 }));
        assert_eq!(nowhere.choose(&case(4), &ways, |way| Ok(seconds(way))), Way::Tiles);
    }

    #[test]
    fn a_table_survives_being_text() {
        let table = Table(Way::ALL.into_iter().enumerate().map(|(i, way)| (case(1 << i), way)).collect());
        assert_eq!(Table::parse(&table.text()), Some(table));
        for bad in ["2-256 1 2", "2-256 1 2 x tiles", "2-256 1 2 4 tiles more"] {
            assert_eq!(Table::parse(bad), None, "{bad}");
        }
    }
}
