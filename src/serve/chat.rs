//! Chat completions, and what needs the chat template.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde_json::{Map, Value, json};

use super::app::{App, Call};
use super::error::ApiError;
use super::fields::Fields;
use super::options::top_logprobs;
use super::{Answered, parsed};
use crate::generate::ChatTemplate;

/// POST /v1/chat/completions.
pub async fn chat_completions(State(app): State<Arc<App>>, fields: Fields) -> Result<Response, ApiError> {
    let call = parsed(&app, fields, call).await?;
    app.start(call)?.response().await
}

/// POST /apply-template: the text of a conversation.
pub async fn apply_template(State(app): State<Arc<App>>, fields: Fields) -> Answered {
    let text = parsed(&app, fields, |app, fields| {
        app.check(fields)?;
        render(app, fields)
    });
    Ok(Json(json!({ "prompt": text.await? })))
}

fn call(app: &App, fields: &mut Fields) -> Result<Call, ApiError> {
    app.check(fields)?;
    let top = top_logprobs(fields, "top_logprobs")?;
    let logprobs = match (fields.flag("logprobs")?.unwrap_or(false), top) {
        (true, top) => Some(top.unwrap_or(0)),
        (false, None | Some(0)) => None,
        (false, Some(_)) => {
            return Err(ApiError::field("top_logprobs", "top_logprobs: needs logprobs: true"));
        }
    };
    let options = app.options(fields, None, logprobs)?;
    let text = render(app, fields)?;
    let prompt = app.tokenizer.encode(&text, false)?;
    app.check_prompt("messages", &prompt)?;
    Ok(Call { prompts: vec![prompt], options, echo: vec![], is_chat: true })
}

/// The text of the conversation that a call's fields hold.
pub fn render(app: &App, fields: &mut Fields) -> Result<String, ApiError> {
    let template = template(app)?;
    let messages: Vec<Map<String, Value>> = fields.need("messages", "a list of messages")?;
    if messages.is_empty() {
        return Err(ApiError::field("messages", "messages: expected at least one, found none"));
    }
    let messages: Vec<Value> =
        messages.into_iter().enumerate().map(|(i, fields)| message(i, fields)).collect::<Result<_, _>>()?;
    let variables: Map<String, Value> = fields.take("chat_template_kwargs", "an object")?.unwrap_or_default();
    let add_generation_prompt = fields.flag("add_generation_prompt")?.unwrap_or(true);
    let rendered = template.render_with(&json!(messages), add_generation_prompt, variables);
    rendered.map_err(|error| ApiError::field("messages", error.to_string()))
}

fn template(app: &App) -> Result<&ChatTemplate, ApiError> {
    match &app.template {
        Some(Ok(template)) => Ok(template),
        Some(Err(why)) => Err(ApiError::field("messages", why)),
        None => Err(ApiError::field(
            "messages",
            "messages: this model has no chat template (a base model): use /v1/completions",
        )),
    }
}

/// A message as templates read it: a role, a content that is text, and a name where it has one.
fn message(index: usize, mut fields: Map<String, Value>) -> Result<Value, ApiError> {
    let param = |field: &str| format!("messages[{index}].{field}");
    for field in ["tool_calls", "function_call", "audio"] {
        if fields.get(field).is_some_and(|value| !value.is_null() && *value != json!([])) {
            let error = format!("{}: this server does not support it yet", param(field));
            return Err(ApiError::field(param(field), error).code("unsupported_parameter"));
        }
    }
    let roles = "\"system\", \"developer\", \"user\" or \"assistant\"";
    let role = match fields.get("role").and_then(Value::as_str) {
        // The later name of the same thing, which few templates know.
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        _ => {
            let found = fields.get("role").unwrap_or(&Value::Null);
            return Err(ApiError::expected(&param("role"), roles, found));
        }
    };
    let content = match fields.remove("content") {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => {
            let texts = parts.iter().enumerate();
            texts
                .map(|(i, part)| text_part(&param(&format!("content[{i}]")), part))
                .collect::<Result<_, _>>()?
        }
        found => {
            let found = found.unwrap_or(Value::Null);
            return Err(ApiError::expected(&param("content"), "a text or a list of parts", found));
        }
    };
    let mut message = json!({ "role": role, "content": content });
    if let Some(name) = fields.remove("name").filter(|name| !name.is_null()) {
        message["name"] = name;
    }
    Ok(message)
}

/// The text of a content part.
fn text_part(param: &str, part: &Value) -> Result<String, ApiError> {
    match (part["type"].as_str(), part["text"].as_str()) {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        _ => Err(ApiError::expected(param, "a part of type text", part)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: Value) -> Result<Value, ApiError> {
        let Value::Object(fields) = value else { panic!("{value}") };
        message(3, fields)
    }

    #[test]
    fn messages_are_text() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "text", "text": "b" }]);
        let read_parts =
            read(json!({ "role": "developer", "content": parts, "name": "x", "tool_calls": null }));
        assert_eq!(read_parts.unwrap(), json!({ "role": "system", "content": "ab", "name": "x" }));
        for (message, param) in [
            (json!({ "role": "tool", "content": "a" }), "messages[3].role"),
            (json!({ "content": "a" }), "messages[3].role"),
            (json!({ "role": "user", "content": null }), "messages[3].content"),
            (json!({ "role": "user", "content": [{ "type": "image_url" }] }), "messages[3].content[0]"),
            (json!({ "role": "user", "content": ["a"] }), "messages[3].content[0]"),
            (json!({ "role": "assistant", "tool_calls": [{}] }), "messages[3].tool_calls"),
        ] {
            assert_eq!(read(message).unwrap_err().json()["error"]["param"], param);
        }
    }
}
