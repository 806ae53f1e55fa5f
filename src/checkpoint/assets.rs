//! [`Assets`]: the texts beside the weights of a Hugging Face folder.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// The texts that travel with the weights: files of a Hugging Face folder, or their copies in a .fasq header.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assets {
    /// config.json.
    pub config: String,
    /// tokenizer.json.
    pub tokenizer: Option<String>,
    /// tokenizer_config.json, of which the special tokens' texts matter.
    pub tokenizer_config: Option<String>,
    /// generation_config.json.
    pub generation_config: Option<String>,
    /// The chat template, from chat_template.jinja or tokenizer_config.json.
    pub chat_template: Option<String>,
}

/// The texts of a Hugging Face folder.
pub fn read(dir: &Path) -> Result<Assets> {
    if !dir.is_dir() {
        let found = if dir.exists() { "a file" } else { "nothing there" };
        return Err(Error::mismatch(dir.display().to_string(), "a Hugging Face model folder", found));
    }
    let optional = |name: &str| read_text(&dir.join(name));
    let config = optional("config.json")?
        .ok_or_else(|| Error::invalid(dir.display().to_string(), "no config.json in this folder"))?;
    let side_file = |name: &str| Ok::<_, Error>(optional(name)?.filter(is_object(name)));
    let special_tokens = side_file("special_tokens_map.json")?;
    let tokenizer_config = with_special_tokens(side_file("tokenizer_config.json")?, special_tokens)?;
    let tokenizer = optional("tokenizer.json")?
        .map(|tokenizer| with_added_tokens(tokenizer, &tokenizer_config, side_file("added_tokens.json")?))
        .transpose()?;
    let chat_template = match optional("chat_template.jinja")? {
        Some(template) => Some(template),
        None => tokenizer_config.as_deref().map(template_of).transpose()?.flatten(),
    };
    Ok(Assets {
        config,
        tokenizer,
        tokenizer_config,
        generation_config: side_file("generation_config.json")?,
        chat_template,
    })
}

/// Whether a side file's text is a JSON object. A damaged one is left out with a warning, because its settings have
/// defaults.
fn is_object(name: &str) -> impl Fn(&String) -> bool {
    move |text| match serde_json::from_str::<serde_json::Map<String, Value>>(text) {
        Ok(_) => true,
        Err(e) => {
            log::warn!("{name} is ignored: {e}");
            false
        }
    }
}

/// tokenizer_config.json with the special tokens that only special_tokens_map.json names, as in older folders.
fn with_special_tokens(config: Option<String>, tokens: Option<String>) -> Result<Option<String>> {
    let Some(tokens) = tokens else { return Ok(config) };
    let mut all = object("tokenizer_config.json", config.as_deref().unwrap_or("{}"))?;
    let mut changed = false;
    for (name, token) in object("special_tokens_map.json", &tokens)? {
        if name.ends_with("_token") && all.get(&name).is_none_or(Value::is_null) {
            all.insert(name, token);
            changed = true;
        }
    }
    Ok(if changed { Some(Value::Object(all).to_string()) } else { config })
}

/// tokenizer.json with the added tokens that it lacks and that tokenizer_config.json or added_tokens.json has.
///
/// # Errors
/// A token's id is not a number; tokenizer.json is not JSON.
fn with_added_tokens(tokenizer: String, config: &Option<String>, added: Option<String>) -> Result<String> {
    let config = object("tokenizer_config.json", config.as_deref().unwrap_or("{}"))?;
    let mut missing: Vec<Value> = Vec::new();
    let mut add = |file: &str, id: Option<u64>, content: &str, token: &Value| {
        let id = id.ok_or_else(|| Error::mismatch(format!("{file}: {content:?}"), "an id", token))?;
        // As JSON writes it: a text that is there is a token already, or is told by the check of the ids.
        if !content.is_empty() && !tokenizer.contains(&json!(content).to_string()) {
            let flag = |name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
            missing.push(json!({
                "id": id, "content": content, "single_word": flag("single_word"), "lstrip": flag("lstrip"),
                "rstrip": flag("rstrip"), "normalized": flag("normalized"), "special": flag("special"),
            }));
        }
        Ok::<_, Error>(())
    };
    for (id, token) in config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten() {
        let content = token["content"].as_str().unwrap_or_default();
        add("tokenizer_config.json: added_tokens_decoder", id.parse().ok(), content, token)?;
    }
    for (content, id) in object("added_tokens.json", added.as_deref().unwrap_or("{}"))? {
        add("added_tokens.json", id.as_u64(), &content, &id)?;
    }
    if missing.is_empty() {
        return Ok(tokenizer);
    }
    let mut whole = object("tokenizer.json", &tokenizer)?;
    if let Some(list) = whole.entry("added_tokens").or_insert_with(|| json!([])).as_array_mut() {
        missing.sort_by_key(|token| token["id"].as_u64());
        missing.dedup_by_key(|token| token["id"].as_u64());
        list.extend(missing);
    }
    Ok(Value::Object(whole).to_string())
}

/// A JSON object.
fn object(name: &str, text: &str) -> Result<Map<String, Value>> {
    serde_json::from_str(text).map_err(|e| Error::invalid(name, e))
}

/// The `chat_template` of tokenizer_config.json: a text, or a list of named ones of which `default` is taken.
fn template_of(tokenizer_config: &str) -> Result<Option<String>> {
    let config: Value =
        serde_json::from_str(tokenizer_config).map_err(|e| Error::invalid("tokenizer_config.json", e))?;
    let default = |list: &Vec<Value>| {
        list.iter().find(|t| t["name"] == "default").and_then(|t| t["template"].as_str().map(str::to_owned))
    };
    Ok(match &config["chat_template"] {
        Value::String(template) => Some(template.clone()),
        Value::Array(list) => default(list),
        _ => None,
    })
}

pub(crate) fn read_text(path: &Path) -> Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Some(text)),
            Err(e) => Err(Error::invalid(path.display().to_string(), format!("not UTF-8: {e}"))),
        },
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path)(e)),
    }
}
