//! [`HubName`]: how a user names a model on the Hugging Face hub.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Result};

/// What the names of models on the hub begin with.
pub const PREFIX: &str = "hf:";
/// The branch that a repository has at least.
const MAIN: &str = "main";

/// `hf:ORG/NAME[@REVISION][/FILE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// ORG/NAME.
    pub repository: String,
    /// A branch, a tag or a commit.
    pub revision: String,
    /// The path of a .gguf or .fasq file in the repository; none where the whole repository is the model.
    pub file: Option<String>,
}

impl FromStr for HubName {
    type Err = Error;

    /// Fails where a part is missing or could not be a file name: parts become folders of the cache.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            let expected = "hf:ORG/NAME[@REVISION], or the same with the /path of a .gguf or .fasq file";
            Error::mismatch("model", expected, format!("{text:?}"))
        };
        let rest = text.strip_prefix(PREFIX).ok_or_else(bad)?;
        let (organization, rest) = rest.split_once('/').ok_or_else(bad)?;
        let (name, rest) = rest.split_at(rest.find(['@', '/']).unwrap_or(rest.len()));
        let (revision, file) = match rest.strip_prefix('@') {
            None => (MAIN, rest.strip_prefix('/')),
            Some(rest) => match rest.split_once('/').filter(|(_, path)| is_model_file(path)) {
                Some((revision, file)) => (revision, Some(file)),
                None => (rest, None),
            },
        };
        let repository_is_valid =
            [organization, name].iter().all(|part| is_plain(part) && !part.contains("--"));
        let file_is_valid = file.is_none_or(|file| is_model_file(file) && file.split('/').all(is_file_name));
        if !(repository_is_valid && revision.split('/').all(is_plain) && file_is_valid) {
            return Err(bad());
        }
        Ok(Self {
            repository: format!("{organization}/{name}"),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

impl fmt::Display for HubName {
    /// The repository with its revision, without the file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.repository)?;
        if self.revision != MAIN { write!(f, "@{}", self.revision) } else { Ok(()) }
    }
}

impl HubName {
    /// The files that `file` stands for: all of a split GGUF (`-00001-of-00003.gguf`), the first one first, or itself.
    pub fn parts(file: &str) -> Vec<String> {
        let split = || {
            let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
            let (stem, number) = rest.rsplit_once('-')?;
            let is_number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
            let parts: u32 =
                [number, count].iter().all(|text| is_number(text)).then(|| count.parse().ok())??;
            (parts > 0).then(|| (1..=parts).map(|i| format!("{stem}-{i:05}-of-{count}.gguf")).collect())
        };
        split().unwrap_or_else(|| vec![file.to_owned()])
    }
}

/// Whether a path is that of a model in one file.
pub fn is_model_file(path: &str) -> bool {
    path.ends_with(".gguf") || path.ends_with(".fasq")
}

/// Whether a text is of the characters that names of repositories and revisions have, and a file name.
fn is_plain(part: &str) -> bool {
    part.len() <= 96
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-+".contains(&b))
        && is_file_name(part)
}

/// Whether a text can be one component of a path and stay below the folder that it is joined to, on every system.
fn is_file_name(part: &str) -> bool {
    !part.is_empty() && !part.contains("..") && part != "." && !part.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_repository_and_may_have_more() {
        for (text, repository, revision, file) in [
            ("hf:Qwen/Qwen3-8B", "Qwen/Qwen3-8B", "main", None),
            ("hf:a/b@v1.0", "a/b", "v1.0", None),
            ("hf:a/b@refs/pr/1", "a/b", "refs/pr/1", None),
            ("hf:a/b/x/y.gguf", "a/b", "main", Some("x/y.gguf")),
            ("hf:a/b@v1/x@2.gguf", "a/b", "v1", Some("x@2.gguf")),
            ("hf:a/b/x@2.fasq", "a/b", "main", Some("x@2.fasq")),
        ] {
            let name: HubName = text.parse().unwrap();
            let found = (name.repository.as_str(), name.revision.as_str(), name.file.as_deref());
            assert_eq!(found, (repository, revision, file), "{text}");
        }
    }

    #[test]
    fn names_that_leave_the_cache_or_miss_a_part_are_refused() {
        for text in [
            "hf:",
            "hf:a",
            "hf:a/",
            "hf:/b",
            "hf:a/..",
            "hf:../b",
            "hf:a/b@",
            "hf:a/b@../../x",
            "hf:a/b@/x",
            "hf:a/b/c",
            "hf:a/b/",
            "hf:a/b/../x.gguf",
            "hf:a/b//x.gguf",
            "hf:a/b/C:x.gguf",
            "hf:a/b/x\\y.gguf",
            "hf:a--b/c",
            "hf:a/b c",
            "hf:a/b?c",
            "a/b",
        ] {
            assert!(text.parse::<HubName>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_split_file_stands_for_all_of_its_parts() {
        assert_eq!(
            HubName::parts("q/m-00002-of-00002.gguf"),
            ["q/m-00001-of-00002.gguf", "q/m-00002-of-00002.gguf"]
        );
        for whole in ["m.gguf", "m-00001-of-00000.gguf", "m-1-of-2.gguf", "m-00001-of-00002.fasq"] {
            assert_eq!(HubName::parts(whole), [whole]);
        }
    }
}
