//! [`Download`]: files of a commit, resumed where they broke off, and checked.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;
use sha1::Sha1;
use sha2::Sha256;
use sha2::digest::DynDigest;
use ureq::http::StatusCode;

use super::cache::create_folder_of;
use super::client::{Checksum, Client, Failure, Remote};
use crate::{Error, Result};

/// Attempts in a row that bring nothing before a download fails.
const ATTEMPTS: u32 = 5;
/// Half the time before the second attempt; it doubles with each that brings nothing.
const PAUSE: Duration = Duration::from_millis(125);
/// Bytes read at once.
const CHUNK: usize = 1 << 17;

/// What downloads of one commit share.
pub struct Download<'a> {
    pub client: &'a Client<'a>,
    pub commit: &'a str,
    pub bar: &'a ProgressBar,
    /// Ends a download with [`Error::Interrupted`].
    pub stop: &'a AtomicBool,
}

impl Download<'_> {
    /// Downloads a file into `blob`; what has arrived is kept beside it in a file that ends in .incomplete. Fails if
    /// the content is not what the checksum says, and keeps none of it then.
    pub fn run(&self, name: &str, remote: &Remote, blob: &Path) -> Result<()> {
        let mut partial = Partial::open(blob, remote)?;
        self.bar.inc(partial.bytes);
        self.bar.reset_eta();
        let mut fruitless = 0;
        loop {
            let before = partial.bytes;
            let failure = match self.receive(name, &mut partial) {
                Ok(()) => return self.finish(name, partial, blob),
                Err(Failure::Passing(error)) => error,
                Err(Failure::Lasting(error)) => return Err(error),
            };
            fruitless = if partial.bytes > before { 1 } else { fruitless + 1 };
            if fruitless == ATTEMPTS {
                return Err(failure);
            }
            log::info!("{failure}");
            std::thread::sleep(PAUSE * (1 << fruitless));
        }
    }

    /// Asks once for the bytes that are missing and appends what comes.
    fn receive(&self, name: &str, partial: &mut Partial<'_>) -> Result<(), Failure> {
        let size = partial.remote.size;
        if partial.bytes == size {
            return Ok(());
        }
        let response = self.client.file(self.commit, name, partial.bytes)?;
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // The whole file comes, whatever was asked for.
            self.bar.dec(partial.bytes);
            partial.restart().map_err(Failure::Lasting)?;
        }
        let mut body = response.into_body().into_reader().take(size - partial.bytes);
        let mut chunk = vec![0; CHUNK];
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Failure::Lasting(Error::Interrupted));
            }
            let count = body.read(&mut chunk).map_err(|e| Failure::Passing(self.client.broken(e)))?;
            partial.append(&chunk[..count]).map_err(Failure::Lasting)?;
            self.bar.inc(count as u64);
            match (partial.bytes == size, count) {
                (true, _) => return Ok(()),
                (false, 0) => {
                    let why = format!("{name} breaks off after {} of {size} bytes", partial.bytes);
                    return Err(Failure::Passing(self.client.broken(why)));
                }
                _ => {}
            }
        }
    }

    /// Makes a whole file the blob, if its checksum is right.
    fn finish(&self, name: &str, mut partial: Partial<'_>, blob: &Path) -> Result<()> {
        let (expected, found) = (partial.remote.checksum.id(), partial.checksum()?);
        if found != expected {
            fs::remove_file(&partial.path).map_err(Error::io(&partial.path))?;
            let what = format!("{}: {name}", self.client.what());
            let found = format!("{found}: it arrived damaged and is not kept, run again to download it anew");
            return Err(Error::mismatch(what, format!("checksum {expected}"), found));
        }
        fs::rename(&partial.path, blob).map_err(Error::io(blob))
    }
}

/// A file on its way, of which the first bytes are there.
struct Partial<'a> {
    remote: &'a Remote,
    path: PathBuf,
    file: File,
    bytes: u64,
    /// Of the bytes that are there.
    digest: Box<dyn DynDigest>,
}

impl<'a> Partial<'a> {
    /// What there is of a blob from an earlier download, or nothing yet.
    fn open(blob: &Path, remote: &'a Remote) -> Result<Self> {
        let path = blob.with_extension("incomplete");
        create_folder_of(&path)?;
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(Error::io(&path))?;
        let mut partial = Self { remote, path, file, bytes: 0, digest: digest(remote) };
        let mut chunk = vec![0; CHUNK];
        loop {
            match partial.file.read(&mut chunk).map_err(Error::io(&partial.path))? {
                0 => return Ok(partial),
                count => partial.count(&chunk[..count]),
            }
            if partial.bytes > remote.size {
                partial.restart()?;
            }
        }
    }

    /// Forgets what is there.
    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(Error::io(&self.path))?;
        (self.bytes, self.digest) = (0, digest(self.remote));
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))?;
        self.count(bytes);
        Ok(())
    }

    fn count(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// The checksum of what is there, in hexadecimal digits, once it is on the disk.
    fn checksum(&mut self) -> Result<String> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        let mut bytes = vec![0; self.digest.output_size()];
        let written = self.digest.finalize_into_reset(&mut bytes);
        written.map_err(|e| Error::invalid(self.path.display().to_string(), e))?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// The hash of no bytes yet that a file's checksum is made by.
fn digest(remote: &Remote) -> Box<dyn DynDigest> {
    match remote.checksum {
        Checksum::Sha256(_) => Box::new(Sha256::default()),
        Checksum::Git(_) => {
            let mut digest = Sha1::default();
            DynDigest::update(&mut digest, format!("blob {}\0", remote.size).as_bytes());
            Box::new(digest)
        }
    }
}
