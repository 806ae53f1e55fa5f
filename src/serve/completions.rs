//! Completions of prompts that are texts or token ids.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Deserialize;

use super::app::{App, Call};
use super::error::ApiError;
use super::fields::Fields;
use super::options::top_logprobs;
use super::parsed;

/// Tokens to write unless a call says otherwise, as in OpenAI's API.
const TOKENS: usize = 16;

#[derive(Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Texts(Vec<String>),
    ManyIds(Vec<Vec<u32>>),
}

/// POST /v1/completions.
pub async fn completions(State(app): State<Arc<App>>, fields: Fields) -> Result<Response, ApiError> {
    let call = parsed(&app, fields, call).await?;
    app.start(call)?.response().await
}

fn call(app: &App, fields: &mut Fields) -> Result<Call, ApiError> {
    app.check(fields)?;
    let logprobs = top_logprobs(fields, "logprobs")?;
    let options = app.options(fields, Some(TOKENS), logprobs)?;
    let expected = "a text, a list of texts, a list of token ids, or a list of such lists";
    let prompt = fields.need("prompt", expected)?;
    let add_special_tokens = fields.flag("add_special_tokens")?.unwrap_or(true);
    let encode = |text: &String| app.tokenizer.encode(text, add_special_tokens);
    let prompts = match &prompt {
        Prompt::Text(text) => vec![encode(text)?],
        Prompt::Texts(texts) => texts.iter().map(encode).collect::<Result<_, _>>()?,
        Prompt::Ids(ids) => vec![ids.clone()],
        Prompt::ManyIds(lists) => lists.clone(),
    };
    if prompts.is_empty() {
        return Err(ApiError::field("prompt", "prompt: expected at least one, found none"));
    }
    prompts.iter().try_for_each(|ids| app.check_prompt("prompt", ids))?;
    let echo = fields.flag("echo")?.unwrap_or(false);
    if echo && logprobs.is_some() {
        let why = "echo: log probabilities of the prompt are not supported yet";
        return Err(ApiError::field("echo", why).code("unsupported_parameter"));
    }
    let echo = match (echo, prompt) {
        (false, _) => vec![],
        (true, Prompt::Text(text)) => vec![text],
        (true, Prompt::Texts(texts)) => texts,
        (true, Prompt::Ids(_) | Prompt::ManyIds(_)) => {
            prompts.iter().map(|ids| app.tokenizer.decode(ids, false)).collect::<Result<_, _>>()?
        }
    };
    Ok(Call { prompts, options, echo, is_chat: false })
}
