//! [`ChatTemplate`]: turns a conversation into the text format of a model, by the model's own Jinja template.
//!
//! The environment is that of transformers' `apply_chat_template`: `trim_blocks` and `lstrip_blocks`, loop controls,
//! `raise_exception`, `strftime_now`, a `tojson` that keeps the order of keys and escapes nothing for HTML, and the
//! methods of Python's strings and dictionaries.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::{Map, json};

use super::Tokenizer;
use super::tokenizer::token_text;
use crate::checkpoint::Assets;
use crate::config::ModelConfig;
use crate::{Error, Result};

/// Template instructions that one rendering may run: an endless loop is an error.
const FUEL: u64 = 20_000_000;

/// The special tokens whose texts a template may use as variables.
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// "system", "user" or "assistant".
    pub role: String,
    pub content: String,
}

impl Message {
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template, compiled.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: Map<String, serde_json::Value>,
    /// Of the user's; those that every template has keep their values.
    variables: Map<String, serde_json::Value>,
}

impl ChatTemplate {
    /// The template of a model.
    ///
    /// # Errors
    /// The model has none (a base model), or it does not compile.
    pub fn new(assets: &Assets, config: &ModelConfig, tokenizer: &Tokenizer) -> Result<Self> {
        let Some(template) = &assets.chat_template else {
            return Err(Error::invalid(
                "chat template",
                "the model has none: a base model continues text (-p TEXT) but does not chat",
            ));
        };
        Ok(Self {
            environment: environment(template).map_err(invalid)?,
            special_tokens: special_tokens(assets, config, tokenizer)?,
            variables: Map::new(),
        })
    }

    /// The same with variables of the model's own, as `enable_thinking`.
    #[must_use]
    pub fn with(self, variables: Map<String, serde_json::Value>) -> Self {
        Self { variables, ..self }
    }

    /// The text of a conversation. It contains its special tokens: encode it without adding any. With
    /// `add_generation_prompt` it ends where the assistant's next turn begins.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.render_with(&json!(messages), add_generation_prompt, self.variables.clone())
    }

    /// [`ChatTemplate::render`] of messages that may have other fields, with variables of the model's own, as
    /// `enable_thinking`; those that every template has keep their values.
    pub fn render_with(
        &self,
        messages: &serde_json::Value,
        add_generation_prompt: bool,
        mut variables: Map<String, serde_json::Value>,
    ) -> Result<String> {
        variables.extend(self.special_tokens.clone());
        variables.insert("messages".into(), messages.clone());
        variables.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        variables.insert("tools".into(), json!(null));
        variables.insert("documents".into(), json!(null));
        self.environment.get_template("chat").and_then(|t| t.render(Serde(variables))).map_err(invalid)
    }
}

/// An environment with the template, called "chat".
fn environment(template: &str) -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_fuel(Some(FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_template_owned("chat", rewritten(template))?;
    Ok(environment)
}

/// A template in the words of this engine: line ends are LF, as Jinja2 reads them, and `{% generation %}`, by which a
/// trainer finds what the assistant says, is a block that is always rendered, as transformers does.
fn rewritten(template: &str) -> String {
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut parts = template.split("{%");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += "{%";
        let tag = part.split_once("%}");
        let name = tag.map(|(tag, _)| tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+'));
        text += &match name {
            Some("generation") => part.replacen("generation", "if true", 1),
            Some("endgeneration") => part.replacen("endgeneration", "endif", 1),
            Some(_) | None => part.to_owned(),
        };
    }
    text
}

/// A template's error in one line: the message that it raised itself, or the kind and place of its mistake.
fn invalid(error: minijinja::Error) -> Error {
    let why = match (error.detail(), error.line()) {
        (Some(detail), _) if error.kind() == ErrorKind::InvalidOperation && detail.starts_with(RAISED) => {
            detail[RAISED.len()..].to_string()
        }
        (Some(detail), Some(line)) => format!("line {line}: {}: {detail}", error.kind()),
        _ => error.to_string(),
    };
    Error::invalid("chat template", why.replace('\n', " "))
}

/// Marks messages that a template raised itself.
const RAISED: &str = "raised: ";

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
}

/// Python's `datetime.now().strftime(format)`.
fn strftime_now(format: String) -> Result<String, minijinja::Error> {
    jiff::fmt::strtime::format(&format, &jiff::Zoned::now()).map_err(|e| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
    })
}

/// Python's `json.dumps(value, ensure_ascii=False, indent=indent)`.
fn to_json(value: Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // Keys keep their order and non-ASCII text is never escaped, whatever these two say.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = " ".repeat(indent.min(16));
            let style = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, style))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)),
    };
    let bad = |e: String| minijinja::Error::new(ErrorKind::InvalidOperation, format!("tojson: {e}"));
    written.map_err(|e| bad(e.to_string()))?;
    String::from_utf8(json).map(Value::from_safe_string).map_err(|e| bad(e.to_string()))
}

/// Python's separators: `, ` and `: `.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

/// The texts of special tokens by name: from tokenizer_config.json, or, for BOS and EOS, by the ids in config.json.
fn special_tokens(
    assets: &Assets,
    config: &ModelConfig,
    tokenizer: &Tokenizer,
) -> Result<Map<String, serde_json::Value>> {
    let json = assets.tokenizer_config.as_deref().unwrap_or("{}");
    let tokenizer_config: serde_json::Value =
        serde_json::from_str(json).map_err(|e| Error::invalid("tokenizer_config.json", e))?;
    let ids = [("bos_token", config.bos), ("eos_token", config.eos.first().copied())];
    let mut tokens = Map::new();
    for name in SPECIAL_TOKENS {
        let entry = tokenizer_config.get(name);
        let text = entry.and_then(token_text).map(str::to_string);
        // null: the model has no such token.
        let by_id = || ids.iter().find(|(n, _)| *n == name).and_then(|(_, id)| tokenizer.token((*id)?));
        if let Some(text) = if entry.is_some() { text } else { by_id() } {
            tokens.insert(name.to_string(), text.into());
        }
    }
    Ok(tokens)
}
