//! [`Writer`]: a .fasq file, written in any order and whole or not at all.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use half::f16;

use super::TOKENIZER;
use super::layout::{Layout, Place};
use crate::pq::{Scope, universal};
use crate::{Error, Result};

/// Time between two entries into the journal, each of which waits for the disk.
const JOURNAL_PAUSE: Duration = Duration::from_secs(2);

/// Writes a .fasq file of known contents to `OUT.fasq.partial`, which takes its name when [`Writer::finish`] ends.
///
/// Parts may come in any order. A writer that is dropped leaves the partial file, and one that resumes it finds in
/// [`Progress`] which matrices are there already.
pub struct Writer {
    out: PathBuf,
    partial: PathBuf,
    file: File,
    layout: Layout,
    journal: Journal,
}

/// Matrices that a partial file holds, with their relative errors.
pub type Progress = HashMap<String, f64>;

struct Journal {
    /// Where in the file the next line goes.
    at: u64,
    pending: String,
    written: Instant,
}

impl Writer {
    /// Starts the file `out`, or continues its partial file if `resume` is set and there is one.
    ///
    /// `fingerprint` stands for the source: a partial file is continued only where it and the layout are equal.
    ///
    /// # Errors
    /// A partial file of another source or layout; whatever the file system refuses.
    pub fn create(out: &Path, layout: Layout, fingerprint: u64, resume: bool) -> Result<(Self, Progress)> {
        let partial = partial_path(out);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!resume)
            .open(&partial)
            .map_err(Error::io(&partial))?;
        let identity = format!("{:016x}", fnv1a(layout.header()?.as_bytes(), fingerprint));
        let journal = Journal { at: 8, pending: String::new(), written: Instant::now() };
        let mut writer = Self { out: out.to_path_buf(), partial, file, layout, journal };
        let progress = writer.open_journal(&identity)?;
        Ok((writer, progress))
    }

    /// Writes a dense tensor's bytes, of which `bytes` begin at byte `at`.
    pub fn dense(&mut self, name: &str, at: usize, bytes: &[u8]) -> Result<()> {
        self.write(name, at, bytes)
    }

    /// Writes rows of a quantized matrix from `first_row` on: packed codes, and scales where its spec has them.
    pub fn rows(&mut self, name: &str, first_row: usize, codes: &[u8], scales: &[f16]) -> Result<()> {
        let codes_name = format!("{name}.codes");
        let row_bytes = self.place(&codes_name)?.part.shape[1];
        self.write(&codes_name, first_row * row_bytes, codes)?;
        let scales_name = format!("{name}.scales");
        let expected = if self.layout.parts.contains_key(&scales_name) { codes.len() / row_bytes } else { 0 };
        if scales.len() != expected {
            return Err(Error::mismatch(scales_name, format!("{expected} scales"), scales.len()));
        }
        if expected > 0 {
            self.write(&scales_name, 2 * first_row, &f16_bytes(scales))?;
        }
        Ok(())
    }

    /// Writes a matrix's own codebooks.
    pub fn codebooks(&mut self, name: &str, codebooks: &[f16]) -> Result<()> {
        self.write(&format!("{name}.codebooks"), 0, &f16_bytes(codebooks))
    }

    /// Notes that all of a quantized matrix is written, and what was lost.
    pub fn done(&mut self, name: &str, error: f64) -> Result<()> {
        self.layout.set_error(name, error);
        self.journal.pending += &format!("{name} {error:e}\n");
        if self.journal.written.elapsed() >= JOURNAL_PAUSE { self.flush_journal() } else { Ok(()) }
    }

    /// Syncs the file and writes finished matrices to its journal: call it before the process ends early.
    pub fn flush_journal(&mut self) -> Result<()> {
        self.file.sync_data().map_err(Error::io(&self.partial))?;
        let pending = std::mem::take(&mut self.journal.pending);
        let end = self.journal.at + pending.len() as u64;
        if end > 8 + self.layout.header_len {
            let what = format!("{}: its journal", self.partial.display());
            return Err(Error::mismatch(
                what,
                format!("at most {} bytes, the header's", self.layout.header_len),
                end - 8,
            ));
        }
        self.write_at(self.journal.at, pending.as_bytes())?;
        self.journal.at = end;
        self.journal.written = Instant::now();
        Ok(())
    }

    /// Writes what the file's readers share, and the header, and gives the file its name. Returns its bytes.
    pub fn finish(mut self) -> Result<u64> {
        let texts = self.layout.texts.clone();
        if let Some(tokenizer) = &texts.tokenizer {
            self.write(TOKENIZER, 0, tokenizer)?;
        }
        let specs: Vec<_> = self.layout.plan.iter().map(|entry| entry.spec).collect();
        for spec in specs.into_iter().filter(|spec| spec.scope == Scope::Universal) {
            self.write(&spec.universal_name(), 0, &f16_bytes(&universal::codebook(spec.d, spec.k)))?;
        }
        let len = self.layout.file_len();
        self.file.set_len(len).map_err(Error::io(&self.partial))?;
        let mut header = self.layout.header()?;
        header.extend(std::iter::repeat_n(' ', self.layout.header_len as usize - header.len()));
        // The data must be on disk before a header says so.
        self.file.sync_data().map_err(Error::io(&self.partial))?;
        self.write_at(8, header.as_bytes())?;
        self.write_at(0, &self.layout.header_len.to_le_bytes())?;
        self.file.sync_all().map_err(Error::io(&self.partial))?;
        fs::rename(&self.partial, &self.out).map_err(Error::io(&self.out))?;
        sync_folder(&self.out);
        Ok(len)
    }

    fn place(&self, name: &str) -> Result<&Place> {
        self.layout.parts.get(name).ok_or_else(|| Error::invalid(name, "not among the file's tensors"))
    }

    fn write(&mut self, name: &str, at: usize, bytes: &[u8]) -> Result<()> {
        let place = self.place(name)?;
        let start = place.start + at as u64;
        if start + bytes.len() as u64 > place.end {
            let expected = format!("at most {} bytes", place.end - place.start);
            return Err(Error::mismatch(name, expected, at + bytes.len()));
        }
        self.write_at(8 + self.layout.header_len + start, bytes)
    }

    fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.file
            .seek(SeekFrom::Start(at))
            .and_then(|_| self.file.write_all(bytes))
            .map_err(Error::io(&self.partial))
    }

    /// Reads the journal of a partial file, or begins one.
    fn open_journal(&mut self, identity: &str) -> Result<Progress> {
        let io = Error::io(&self.partial);
        let mut bytes = Vec::new();
        (&self.file).take(8 + self.layout.header_len).read_to_end(&mut bytes).map_err(io)?;
        let text = bytes.get(8..).unwrap_or_default();
        let text = text.split(|&b| b == 0).next().unwrap_or_default();
        if text.is_empty() {
            let first_line = format!("{identity}\n");
            self.write_at(0, &[0; 8])?;
            self.write_at(8, first_line.as_bytes())?;
            self.journal.at += first_line.len() as u64;
            return Ok(Progress::new());
        }
        let text = String::from_utf8_lossy(text);
        // A line without its end was cut off.
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines();
        if lines.next() != Some(identity) {
            return Err(Error::invalid(
                self.partial.display().to_string(),
                "left by another source, plan or version: run without --resume to start over",
            ));
        }
        let mut progress = Progress::new();
        for line in lines {
            let entry = line.rsplit_once(' ').and_then(|(name, error)| Some((name, error.parse().ok()?)));
            let known = entry.filter(|(name, _)| self.layout.plan.iter().any(|entry| entry.name == *name));
            let (name, error) = known.ok_or_else(|| {
                let why = format!("its journal is damaged at {line:?}: run without --resume to start over");
                Error::invalid(self.partial.display().to_string(), why)
            })?;
            self.layout.set_error(name, error);
            progress.insert(name.to_owned(), error);
        }
        self.journal.at += whole as u64;
        Ok(progress)
    }
}

/// Where a file is kept until it is whole.
pub fn partial_path(out: &Path) -> PathBuf {
    let mut name = OsString::from(out);
    name.push(".partial");
    name.into()
}

fn f16_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// FNV-1a, 64 bits (public domain), continued from `hash`.
pub fn fnv1a(bytes: &[u8], hash: u64) -> u64 {
    bytes.iter().fold(hash, |hash, &b| (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Syncs the folder of `file`, so that a rename is durable; does nothing where folders cannot be opened.
fn sync_folder(file: &Path) {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(e) if e.kind() != ErrorKind::PermissionDenied => log::debug!("{}: {e}", folder.display()),
        _ => {}
    }
}
