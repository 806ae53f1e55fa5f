//! [`Cache`]: where the files of a repository are kept, in the layout that the hub's own clients share.
//!
//! `blobs/ID` holds contents, `snapshots/COMMIT/FILE` links to them, `refs/REVISION` holds a commit, and an empty
//! `.no_exist/COMMIT/FILE` says that the commit has no such file
//! (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>).

use std::fs::{self, File, TryLockError};
#[cfg(unix)]
use std::os::unix::fs::symlink;
#[cfg(windows)]
use std::os::windows::fs::symlink_file as symlink;
use std::path::{Path, PathBuf};

use super::name::HubName;
use super::settings;
use crate::cli::write_whole;
use crate::{Error, Result};

/// A repository's part of the cache.
pub struct Cache {
    folder: PathBuf,
    locks: PathBuf,
    revision: String,
}

impl Cache {
    /// Nothing is created yet.
    pub fn new(name: &HubName) -> Result<Self> {
        let root = settings::cache()?;
        let folder = format!("models--{}", name.repository.replace('/', "--"));
        Ok(Self {
            locks: root.join(".locks").join(&folder),
            folder: root.join(folder),
            revision: name.revision.clone(),
        })
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit that the revision is or was when it was downloaded, if it was.
    pub fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let text = fs::read_to_string(self.reference()).ok()?;
        Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers the commit of the revision.
    pub fn remember(&self, commit: &str) -> Result<()> {
        if is_commit(&self.revision) {
            return Ok(());
        }
        let path = self.reference();
        create_folder_of(&path)?;
        write_whole(&path, commit.as_bytes())
    }

    fn reference(&self) -> PathBuf {
        self.folder.join("refs").join(&self.revision)
    }

    /// The folder that has the files of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub fn blob(&self, id: &str) -> PathBuf {
        self.folder.join("blobs").join(id)
    }

    /// Whether a commit is known to have no such file.
    pub fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absence(commit, file).exists()
    }

    /// Remembers that a commit has no such file.
    pub fn remember_absent(&self, commit: &str, file: &str) -> Result<()> {
        let path = self.absence(commit, file);
        create_folder_of(&path)?;
        fs::write(&path, []).map_err(Error::io(&path))
    }

    fn absence(&self, commit: &str, file: &str) -> PathBuf {
        self.folder.join(".no_exist").join(commit).join(file)
    }

    /// Makes a blob the file of a commit: by a link, or by moving it where the file system has no links.
    pub fn link(&self, id: &str, commit: &str, file: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        create_folder_of(&path)?;
        if path.symlink_metadata().is_ok() {
            fs::remove_file(&path).map_err(Error::io(&path))?;
        }
        let up = file.split('/').count() + 1;
        let target: PathBuf = std::iter::repeat_n("..", up).chain(["blobs", id]).collect();
        symlink(target, &path).or_else(|_| fs::rename(self.blob(id), &path)).map_err(Error::io(&path))
    }

    /// Keeps other processes, those of the hub's own clients too, from writing a blob while the returned file is open.
    pub fn lock(&self, id: &str) -> Result<File> {
        let path = self.locks.join(format!("{id}.lock"));
        create_folder_of(&path)?;
        let lock = File::create(&path).map_err(Error::io(&path))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let why = "another program is downloading this file: wait for it, then run again";
                Err(Error::invalid(self.blob(id).display().to_string(), why))
            }
            Err(TryLockError::Error(e)) => {
                log::debug!("{}: {e}", path.display());
                Ok(lock)
            }
            Ok(()) => Ok(lock),
        }
    }
}

/// Whether a text is a whole commit id, which never stands for another commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Whether a text is of lower-case hexadecimal digits, so that it can be a file name.
pub fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Creates the folder that a path is in.
pub fn create_folder_of(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(Error::io(folder)))
}
