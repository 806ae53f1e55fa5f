//! Files that a later run of the program finds again: compiled kernels and measurements.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Bytes of a digest.
const DIGEST: usize = 32;

/// A file of the cache, valid for one set of inputs.
pub struct Entry {
    path: PathBuf,
    key: [u8; DIGEST],
}

impl Entry {
    /// The file `NAME-KEY.ENDING` for a key of all that its contents depend on; none where there is no cache directory.
    pub fn of(name: &str, ending: &str, inputs: &[&str]) -> Option<Self> {
        directory().map(|directory| Self::inside(&directory, name, ending, inputs))
    }

    /// The same in a directory of the caller's.
    pub fn inside(directory: &Path, name: &str, ending: &str, inputs: &[&str]) -> Self {
        let mut hasher = Sha256::new();
        for input in inputs {
            // The length first: else neighbours could share a boundary.
            hasher.update((input.len() as u64).to_le_bytes());
            hasher.update(input);
        }
        let key: [u8; DIGEST] = hasher.finalize().into();
        let short: String = key[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { path: directory.join(format!("{name}-{short}.{ending}")), key }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contents, if the file is whole and of these inputs: key and checksum, then the contents.
    pub fn read(&self) -> Option<Vec<u8>> {
        let file = std::fs::read(&self.path).ok()?;
        let (head, contents) = file.split_at_checked(2 * DIGEST)?;
        let checksum: [u8; DIGEST] = Sha256::digest(contents).into();
        (head == [self.key, checksum].concat()).then(|| contents.to_vec())
    }

    /// Writes a file beside its place and moves it there, so that no reader sees half of one.
    pub fn write(&self, contents: &[u8]) -> std::io::Result<()> {
        let checksum: [u8; DIGEST] = Sha256::digest(contents).into();
        if let Some(parent) = self.path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let beside = self.path.with_extension(format!("{}.tmp", std::process::id()));
        std::fs::write(&beside, [&self.key[..], &checksum, contents].concat())?;
        std::fs::rename(&beside, &self.path)
    }
}

/// `FASQ_CACHE`, else fasq in the user's cache directory.
fn directory() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = || var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    var("FASQ_CACHE").or_else(|| Some(base()?.join("fasq")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_entries_are_not_used() {
        let directory = tempfile::tempdir().unwrap();
        let entry =
            |inputs: &[&str]| Entry::inside(&directory.path().join("deep"), "kernel", "cubin", inputs);
        let ours = entry(&["ab", "c"]);
        assert_eq!(ours.read(), None);
        ours.write(b"machine code").unwrap();
        assert_eq!(ours.read().unwrap(), b"machine code");
        assert_eq!(entry(&["a", "bc"]).read(), None, "other inputs");
        std::fs::copy(ours.path(), entry(&["other"]).path()).unwrap();
        assert_eq!(entry(&["other"]).read(), None, "another key's file");
        let whole = std::fs::read(ours.path()).unwrap();
        for damage in [0, DIGEST, 2 * DIGEST, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[damage] ^= 1;
            std::fs::write(ours.path(), &bytes).unwrap();
            assert_eq!(ours.read(), None, "a flipped bit at {damage}");
        }
        std::fs::write(ours.path(), &whole[..9]).unwrap();
        assert_eq!(ours.read(), None, "cut off");
    }

    /// What a release wrote the next one must find: the key of these inputs never changes.
    #[test]
    fn keys_do_not_change() {
        let entry = Entry::inside(Path::new("d"), "n", "cubin", &["source", "options"]);
        assert_eq!(entry.path(), Path::new("d/n-611c545cc0efd01e.cubin"));
    }
}
