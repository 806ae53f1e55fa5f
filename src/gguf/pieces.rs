//! How byte-level tokenizers cut a text into pieces before they merge, by `tokenizer.ggml.pre`.
//!
//! Expressions: the models' own tokenizer.json files, as llama.cpp's `src/llama-vocab.cpp` quotes them.

use crate::{Error, Result};

/// A way of cutting.
#[derive(Debug)]
pub struct Pieces {
    names: &'static [&'static str],
    /// Each cuts what those before it left.
    pub cuts: &'static [&'static str],
    /// Whether texts are brought into normalization form C first.
    pub nfc: bool,
    /// Whether a piece that is a token as it stands is not merged from bytes.
    pub ignore_merges: bool,
    /// Whether texts begin with BOS where no key says so.
    pub adds_bos: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"##,
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const PLAIN: Pieces = Pieces { names: &[], cuts: &[], nfc: false, ignore_merges: false, adds_bos: false };

static KINDS: [Pieces; 11] = [
    Pieces {
        names: &[
            "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat", "a.x-4.0", "mellum", "exaone4",
        ],
        cuts: &[GPT2],
        ..PLAIN
    },
    Pieces {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        cuts: &[r"\p{N}", GPT2],
        ..PLAIN
    },
    Pieces {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"],
        cuts: &[LLAMA3],
        ignore_merges: true,
        adds_bos: true,
        ..PLAIN
    },
    Pieces { names: &["smaug-bpe", "dbrx", "glm4", "chatglm-bpe"], cuts: &[LLAMA3], ..PLAIN },
    Pieces { names: &["qwen2"], cuts: &[QWEN2], nfc: true, ..PLAIN },
    Pieces { names: &["deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan"], cuts: &[QWEN2], ..PLAIN },
    Pieces { names: &["qwen35"], cuts: &[QWEN35], nfc: true, ..PLAIN },
    Pieces { names: &["tekken"], cuts: &[TEKKEN], ignore_merges: true, adds_bos: true, ..PLAIN },
    Pieces { names: &["gpt-4o", "llama4", "kanana2"], cuts: &[GPT4O], ..PLAIN },
    Pieces {
        names: &["deepseek-v3", "hunyuan-dense"],
        cuts: &[r"\p{N}{1,3}", r"[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3],
        ..PLAIN
    },
    // What files have that name no way.
    Pieces {
        names: &["default"],
        cuts: &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        ..PLAIN
    },
];

/// The way of this name.
///
/// # Errors
/// It is none of those that are known.
pub fn named(name: &str) -> Result<&'static Pieces> {
    KINDS.iter().find(|pieces| pieces.names.contains(&name)).ok_or_else(|| {
        let known: Vec<&str> = KINDS.iter().flat_map(|pieces| pieces.names).copied().collect();
        Error::mismatch(
            "metadata tokenizer.ggml.pre",
            format!("one of {}", known.join(", ")),
            format!("{name:?}"),
        )
    })
}
