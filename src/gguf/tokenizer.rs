//! The tokenizer: what tokenizer.json and tokenizer_config.json would say, from the metadata.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::pieces;
use super::vocabulary::{Kind, Token, Vocabulary};
use crate::{Error, Result};

/// The blank of SentencePiece.
const BLANK: &str = "\u{2581}";

/// The texts of a tokenizer.
#[derive(Debug)]
pub struct Texts {
    /// tokenizer.json.
    pub tokenizer: String,
    /// tokenizer_config.json.
    pub config: String,
}

/// tokenizer.json.
#[derive(Serialize)]
struct File<'a> {
    version: &'static str,
    added_tokens: Vec<Value>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Model<'a>,
}

/// Its model.
#[derive(Serialize)]
struct Model<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    unk_token: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: BTreeMap<&'a str, u32>,
    merges: Vec<(&'a str, &'a str)>,
}

/// The tokenizer's texts; none if the file has no tokenizer. In some models, of the architecture `phi3`, special tokens
/// take the white space after them.
///
/// # Errors
/// A kind of tokenizer that is unknown; lists that do not fit together.
pub fn texts(metadata: &Metadata<'_>, arch: &str) -> Result<Option<Texts>> {
    let kind = metadata.text("tokenizer.ggml.model")?.unwrap_or("none");
    if ["none", "no_vocab"].contains(&kind) {
        return Ok(None);
    }
    let vocabulary = Vocabulary::new(metadata)?;
    let (mut file, adds_bos) = match kind {
        "gpt2" => byte_level(metadata, &vocabulary)?,
        "llama" => (scored(metadata, &vocabulary)?, true),
        other => {
            return Err(Error::mismatch(
                "metadata tokenizer.ggml.model",
                "gpt2 or llama",
                format!("{other:?}"),
            ));
        }
    };
    let special = |name: &str| vocabulary.special(metadata, name);
    let adds = |end: &str| metadata.flag(&format!("tokenizer.ggml.add_{end}_token"));
    let bos = if adds("bos")?.unwrap_or(adds_bos) { special("bos")? } else { None };
    let eos = if adds("eos")?.unwrap_or(false) { special("eos")? } else { None };
    file.post_processor = around(bos, eos);
    let strips = arch == "phi3" && kind == "llama";
    file.added_tokens = vocabulary.tokens.iter().filter_map(|token| added(token, strips)).collect();
    let mut config = Map::new();
    for (key, name) in
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        config.insert(key.into(), json!(special(name)?.map(|token| token.text)));
    }
    let tokenizer = serde_json::to_string(&file).map_err(|e| Error::invalid("tokenizer.json", e))?;
    Ok(Some(Texts { tokenizer, config: Value::Object(config).to_string() }))
}

/// A tokenizer of bytes, and whether it adds BOS where no key says so.
fn byte_level<'a>(metadata: &Metadata<'a>, vocabulary: &Vocabulary<'a>) -> Result<(File<'a>, bool)> {
    let pieces = pieces::named(metadata.text("tokenizer.ggml.pre")?.unwrap_or("default"))?;
    let cut = |regex: &&str| json!({ "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false });
    let bytes =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false });
    let steps: Vec<Value> = pieces.cuts.iter().map(cut).chain([bytes.clone()]).collect();
    let file = File {
        version: "1.0",
        added_tokens: Vec::new(),
        normalizer: if pieces.nfc { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: json!({ "type": "Sequence", "pretokenizers": steps }),
        post_processor: Value::Null,
        decoder: bytes,
        model: Model {
            kind: "BPE",
            unk_token: None,
            fuse_unk: false,
            byte_fallback: false,
            ignore_merges: pieces.ignore_merges,
            vocab: ids(vocabulary),
            merges: vocabulary.listed_merges(metadata)?,
        },
    };
    Ok((file, pieces.adds_bos))
}

/// A tokenizer of SentencePiece: blanks are characters of their own, and what no token has becomes bytes.
fn scored<'a>(metadata: &Metadata<'a>, vocabulary: &Vocabulary<'a>) -> Result<File<'a>> {
    let blanks = json!({ "type": "Replace", "pattern": { "String": " " }, "content": BLANK });
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": BLANK }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    let mut normalizers = vec![blanks];
    if metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": BLANK }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = vocabulary.tokens.iter().find(|token| token.kind == Kind::Unknown);
    let unknown = vocabulary.special(metadata, "unknown")?.or(unknown.copied());
    Ok(File {
        version: "1.0",
        added_tokens: Vec::new(),
        normalizer: json!({ "type": "Sequence", "normalizers": normalizers }),
        pre_tokenizer: Value::Null,
        post_processor: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: Model {
            kind: "BPE",
            unk_token: unknown.map(|token| token.text),
            fuse_unk: true,
            byte_fallback: true,
            ignore_merges: false,
            vocab: ids(vocabulary),
            merges: vocabulary.scored_merges()?,
        },
    })
}

fn ids<'a>(vocabulary: &Vocabulary<'a>) -> BTreeMap<&'a str, u32> {
    vocabulary.tokens.iter().map(|token| (token.text, token.id)).collect()
}

/// A token that is found in a text before it is cut, if it is one.
fn added(token: &Token<'_>, strips: bool) -> Option<Value> {
    let special = match token.kind {
        Kind::Control | Kind::Unknown => true,
        Kind::Added => false,
        Kind::Normal | Kind::Byte => return None,
    };
    let rstrip = strips && !["<unk>", "<s>", "<|endoftext|>"].contains(&token.text);
    Some(
        json!({ "id": token.id, "content": token.text, "single_word": false, "lstrip": false, "rstrip": rstrip,
        "normalized": false, "special": special }),
    )
}

/// The template that puts special tokens around a text.
fn around(bos: Option<Token<'_>>, eos: Option<Token<'_>>) -> Value {
    let piece = |token: Token<'_>| json!({ "SpecialToken": { "id": token.text, "type_id": 0 } });
    let text = |id: &str| json!({ "Sequence": { "id": id, "type_id": 0 } });
    let (before, after) = (bos.map(piece), eos.map(piece));
    let one = |id: &str| before.iter().cloned().chain([text(id)]).chain(after.clone()).collect::<Vec<_>>();
    let mut tokens = Map::new();
    for token in bos.into_iter().chain(eos) {
        tokens.insert(
            token.text.into(),
            json!({ "id": token.text, "ids": [token.id], "tokens": [token.text] }),
        );
    }
    let pair = [one("A"), one("B")].concat();
    json!({ "type": "TemplateProcessing", "single": one("A"), "pair": pair, "special_tokens": tokens })
}
