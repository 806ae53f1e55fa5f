//! The texts of a .fasq file: minified metadata and the compressed tokenizer.

use miniz_oxide::deflate::{CompressionLevel, compress_to_vec_zlib};
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use serde_json::{Map, Value};

use crate::checkpoint::Assets;
use crate::{Error, Result};

/// Most bytes that a tokenizer may have when it is unpacked.
pub const TOKENIZER_LIMIT: usize = 1 << 28;
/// Bytes from which a tokenizer is large.
const LARGE: usize = 1 << 20;

/// The texts as a file holds them. Compressing a tokenizer of
/// 10 MB takes half a second: layouts of one checkpoint share them.
#[derive(Debug)]
pub struct Texts {
    /// `fasq.config` and its sisters.
    pub metadata: Vec<(&'static str, String)>,
    /// `tokenizer.json.zlib`.
    pub tokenizer: Option<Vec<u8>>,
}

impl Texts {
    pub fn new(assets: &Assets) -> Result<Self> {
        let tokenizer = assets.tokenizer.as_deref().map(pack_tokenizer).transpose()?;
        Ok(Self { metadata: metadata(assets)?, tokenizer })
    }
}

fn metadata(assets: &Assets) -> Result<Vec<(&'static str, String)>> {
    let mut list = vec![("fasq.config", minified("config.json", &assets.config)?)];
    if let Some(text) = &assets.generation_config {
        list.push(("fasq.generation_config", minified("generation_config.json", text)?));
    }
    if let Some(text) = &assets.tokenizer_config {
        let mut config: Map<String, Value> =
            serde_json::from_str(text).map_err(|e| Error::invalid("tokenizer_config.json", e))?;
        config.shift_remove("added_tokens_decoder");
        config.shift_remove("chat_template");
        list.push(("fasq.tokenizer_config", Value::Object(config).to_string()));
    }
    if let Some(text) = &assets.chat_template {
        list.push(("fasq.chat_template", text.clone()));
    }
    Ok(list)
}

/// tokenizer.json, minified and compressed. (Of wiki-32m's 547 KB the first leaves 227, the second 78.)
fn pack_tokenizer(text: &str) -> Result<Vec<u8>> {
    let text = minified("tokenizer.json", text)?;
    // A large one takes seconds at the best level, which saves a hundredth of it more.
    let level =
        if text.len() < LARGE { CompressionLevel::UberCompression } else { CompressionLevel::DefaultLevel };
    Ok(compress_to_vec_zlib(text.as_bytes(), level as u8))
}

/// Undoes [`pack_tokenizer`].
pub fn unpack_tokenizer(bytes: &[u8]) -> Result<String> {
    let bad = |why: String| Error::invalid(super::TOKENIZER, why);
    let text = decompress_to_vec_zlib_with_limit(bytes, TOKENIZER_LIMIT).map_err(|e| bad(e.to_string()))?;
    String::from_utf8(text).map_err(|e| bad(e.to_string()))
}

/// JSON without the white space between its tokens; strings and numbers stay as they are written.
fn minified(name: &str, json: &str) -> Result<String> {
    serde_json::from_str::<serde::de::IgnoredAny>(json).map_err(|e| Error::invalid(name, e))?;
    let (mut in_string, mut escaped) = (false, false);
    let mut keep = |c: char| {
        let space = !in_string && c.is_ascii_whitespace();
        in_string ^= c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        !space
    };
    Ok(json.chars().filter(|&c| keep(c)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minified_keeps_the_meaning() {
        let text = "{ \"a b\" : [ 1.50 , -0.1e5,\n\ttrue ],\r\n \"q\\\" \\\\\" : \" x \\\\\" , \"\\u0020\": \"é \" }";
        let small = minified("x", text).unwrap();
        assert_eq!(small, "{\"a b\":[1.50,-0.1e5,true],\"q\\\" \\\\\":\" x \\\\\",\"\\u0020\":\"é \"}");
        let parse = |s: &str| serde_json::from_str::<Value>(s).unwrap();
        assert_eq!(parse(text), parse(&small));
        assert!(minified("x", "{").is_err());
    }

    #[test]
    fn tokenizer_round_trip() {
        let packed = pack_tokenizer("{ \"model\": { } }").unwrap();
        assert_eq!(unpack_tokenizer(&packed).unwrap(), "{\"model\":{}}");
        assert!(unpack_tokenizer(&packed[..packed.len() - 1]).is_err());
        assert!(unpack_tokenizer(b"").is_err());
    }
}
