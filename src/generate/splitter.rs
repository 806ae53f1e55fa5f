//! [`Splitter`]: cuts a text into the pieces that are tokenized one by one, as the `pre_tokenizer` of tokenizer.json says.
//!
//! It is the tokenizers crate's but for regexes: those of the crate backtrack at white space, stop without an error after
//! a million characters of it, and leave the rest of the text in one piece.

use fancy_regex::Regex;
use serde::Deserialize;
use tokenizers::pattern::{Invert, Pattern};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{
    Offsets, PreTokenizedString, PreTokenizer, PreTokenizerWrapper, Result, SplitDelimiterBehavior,
};

/// What byte-level tokenizers split by where they name no regex: that of GPT-2's `encoder.py`.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// One step of splitting, or several.
#[derive(Deserialize)]
#[serde(try_from = "PreTokenizerWrapper")]
pub enum Splitter {
    Sequence(Vec<Splitter>),
    Regex {
        regex: SplitRegex,
        behavior: SplitDelimiterBehavior,
        invert: bool,
    },
    /// By [`GPT2`]; then bytes become characters, by a step that does not split.
    Gpt2 {
        regex: SplitRegex,
        add_prefix_space: bool,
        bytes: ByteLevel,
    },
    Other(PreTokenizerWrapper),
}

impl TryFrom<PreTokenizerWrapper> for Splitter {
    type Error = tokenizers::Error;

    fn try_from(step: PreTokenizerWrapper) -> Result<Self> {
        Ok(match step {
            PreTokenizerWrapper::Sequence(steps) => {
                Self::Sequence(steps.into_iter().map(Self::try_from).collect::<Result<_>>()?)
            }
            PreTokenizerWrapper::Split(split) => match &split.pattern {
                SplitPattern::Regex(regex) => Self::Regex {
                    regex: SplitRegex::new(regex)?,
                    behavior: split.behavior,
                    invert: split.invert,
                },
                SplitPattern::String(_) => Self::Other(split.into()),
            },
            PreTokenizerWrapper::ByteLevel(bytes) if bytes.use_regex => Self::Gpt2 {
                regex: SplitRegex::new(GPT2)?,
                add_prefix_space: bytes.add_prefix_space,
                bytes: bytes.add_prefix_space(false).use_regex(false),
            },
            other => Self::Other(other),
        })
    }
}

impl PreTokenizer for Splitter {
    fn pre_tokenize(&self, text: &mut PreTokenizedString) -> Result<()> {
        match self {
            Self::Sequence(steps) => steps.iter().try_for_each(|step| step.pre_tokenize(text)),
            Self::Regex { regex, behavior, invert: false } => {
                text.split(|_, piece| piece.split(regex, *behavior))
            }
            Self::Regex { regex, behavior, invert: true } => {
                text.split(|_, piece| piece.split(Invert(regex), *behavior))
            }
            Self::Gpt2 { regex, add_prefix_space, bytes } => {
                text.split(|_, mut piece| {
                    if *add_prefix_space && !piece.get().starts_with(' ') {
                        piece.prepend(" ");
                    }
                    piece.split(regex, SplitDelimiterBehavior::Isolated)
                })?;
                bytes.pre_tokenize(text)
            }
            Self::Other(step) => step.pre_tokenize(text),
        }
    }
}

/// A regex that splits a text.
pub struct SplitRegex {
    regex: Regex,
    /// Whether white space is matched by [`AHEAD`].
    ahead: bool,
}

/// White space before a word but for its last character, which the word keeps; nearly every byte-level tokenizer has it.
const BEFORE_WORD: &str = r"\s+(?!\S)";
/// The same without looking ahead, so that no step is taken twice: white space that ends the text, or two and more
/// characters of it, of which the last is not part of the match.
const AHEAD: &str = r"\s+\z|(?<ahead>\s+\s)";

impl SplitRegex {
    fn new(regex: &str) -> Result<Self> {
        // Only where it is an alternative of its own: then what stands before and after it are regexes.
        let rewritten = regex.split_once(BEFORE_WORD).and_then(|(before, after)| {
            let alone = (before.is_empty() || before.ends_with('|'))
                && (after.is_empty() || after.starts_with('|'))
                && [before, after].iter().all(|part| Regex::new(part).is_ok());
            alone.then(|| format!("{before}{AHEAD}{after}"))
        });
        let ahead = rewritten.is_some();
        Ok(Self { regex: Regex::new(rewritten.as_deref().unwrap_or(regex))?, ahead })
    }

    /// Where the match that begins at `start` ends; `end` is where the regex says.
    fn end(&self, text: &str, start: usize, end: usize) -> Result<usize> {
        let last = text[start..end].chars().next_back().filter(|last| last.is_whitespace());
        let Some(last) = last.filter(|last| self.ahead && start + last.len_utf8() < end && end < text.len())
        else {
            return Ok(end);
        };
        let groups = self.regex.captures_from_pos(text, start)?;
        let ahead = groups.is_some_and(|groups| groups.name("ahead").is_some());
        Ok(if ahead { end - last.len_utf8() } else { end })
    }
}

impl Pattern for &SplitRegex {
    fn find_matches(&self, text: &str) -> Result<Vec<(Offsets, bool)>> {
        let (mut pieces, mut done, mut from) = (Vec::new(), 0, 0);
        while let Some(found) = self.regex.find_from_pos(text, from)? {
            let start = found.start();
            let end = self.end(text, start, found.end())?;
            if done < start {
                pieces.push(((done, start), false));
            }
            pieces.push(((start, end), true));
            done = end;
            // After an empty match, one character on.
            let next = text[end..].chars().next().filter(|_| start == end);
            from = end + next.map_or(0, char::len_utf8);
            if start == end && next.is_none() {
                break;
            }
        }
        if done < text.len() || pieces.is_empty() {
            pieces.push(((done, text.len()), false));
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    /// The regexes of Llama 3, Qwen, GPT-4o and GPT-2, as tokenizer.json has them.
    const REGEXES: [&str; 4] = [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{M}]*[\p{Ll}\p{M}]+(?i:'s|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        GPT2,
    ];

    /// Regexes that have no such alternative.
    const OTHERS: [&str; 4] = [r"(?=[A-Z])", r"\s*", r"(?:x|\s+(?!\S)|y)z?", r"\d{1,3}(?=(?:\d{3})*\b)"];

    /// Each as it is and as it is used.
    static COMPILED: LazyLock<Vec<(Regex, SplitRegex)>> = LazyLock::new(|| {
        let both = |regex: &&str| (Regex::new(regex).unwrap(), SplitRegex::new(regex).unwrap());
        REGEXES.iter().chain(&OTHERS).map(both).collect()
    });

    #[test]
    fn only_alternatives_are_rewritten() {
        let rewritten: Vec<bool> = COMPILED.iter().map(|(_, used)| used.ahead).collect();
        assert_eq!(rewritten, [true, true, true, true, false, false, false, false]);
    }

    proptest! {
        #[test]
        fn a_rewritten_regex_matches_the_same(text in "[abA1'. \u{a0}\n\r\té中]{0,40}") {
            let filled = |list: Vec<(Offsets, bool)>| -> Vec<_> {
                list.into_iter().filter(|((start, end), _)| start < end).collect()
            };
            for (regex, used) in COMPILED.iter() {
                let [found, expected] = [used.find_matches(&text), regex.find_matches(&text)];
                prop_assert_eq!(filled(found.unwrap()), filled(expected.unwrap()), "{}", regex);
            }
        }
    }

    #[test]
    fn a_million_spaces_are_split_as_few() {
        let spaces = 1_000_010;
        let text = " ".repeat(spaces) + "x";
        for (_, used) in &COMPILED[..REGEXES.len()] {
            let expected = [((0, spaces - 1), true), ((spaces - 1, spaces + 1), true)];
            assert_eq!(used.find_matches(&text).unwrap(), expected);
        }
    }

    #[test]
    fn a_regex_that_gives_up_is_an_error() {
        let regex = SplitRegex::new(r"(?:a|a)+(?!.)").unwrap();
        assert!((&regex).find_matches(&("a".repeat(100) + "b")).is_err());
    }
}
