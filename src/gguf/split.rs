//! Models in several files: `NAME-00001-of-00003.gguf` and so on.

use std::path::{Path, PathBuf};

use super::metadata::Metadata;
use crate::{Error, Result};

/// Digits of the numbers in a name.
const DIGITS: usize = 5;

/// Every file of the model that one of its files belongs to, the first of them first.
///
/// # Errors
/// One of them is missing.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let Some((start, count)) = path.file_name().and_then(|name| parse(name.to_str()?)) else {
        return Ok(vec![path.to_owned()]);
    };
    let file = |number| path.with_file_name(format!("{start}-{number:0DIGITS$}-of-{count:0DIGITS$}.gguf"));
    let files: Vec<PathBuf> = (1..=count).map(file).collect();
    match files.iter().find(|file| !file.is_file()) {
        None => Ok(files),
        Some(missing) => Err(Error::invalid(
            path.display().to_string(),
            format!("of {count} files, {} is missing", missing.display()),
        )),
    }
}

/// The start of a name, and how many files there are; none if the name is not of that form.
fn parse(name: &str) -> Option<(&str, u32)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (start, number) = rest.rsplit_once('-')?;
    let number_of = |digits: &str| (digits.len() == DIGITS).then(|| digits.parse::<u32>().ok()).flatten();
    let (number, count) = (number_of(number)?, number_of(count)?);
    (1..=count).contains(&number).then_some((start, count))
}

/// Fails if the metadata of file `at` (from 0) of `count` says another place, or that there are files besides.
pub fn check(metadata: &Metadata<'_>, at: usize, count: usize) -> Result<()> {
    for (key, expected) in [("split.no", at), ("split.count", count)] {
        let found = metadata.count(key)?;
        // A whole file may say that it is one of none.
        let whole = count == 1 && found.unwrap_or(0) == 0;
        if !whole && found != Some(expected as u64) {
            let found = found.map_or("nothing".into(), |found| found.to_string());
            return Err(Error::mismatch(format!("metadata {key}"), expected, found));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_splits() {
        assert_eq!(parse("a-b-00002-of-00003.gguf"), Some(("a-b", 3)));
        for whole in
            ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-3.gguf", "a-00001-of-00003"]
        {
            assert_eq!(parse(whole), None, "{whole}");
        }
    }
}
