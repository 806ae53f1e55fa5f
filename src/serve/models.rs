//! What the server says of its model, its tokenizer and itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

use super::app::App;
use super::chat::render;
use super::error::ApiError;
use super::fields::Fields;
use super::{Answered, parsed};

fn description(app: &App) -> Value {
    json!({
        "id": app.model,
        "object": "model",
        "created": app.created,
        "owned_by": "fasq",
        "max_model_len": app.context,
    })
}

/// GET /v1/models.
pub async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [description(&app)] }))
}

/// GET /v1/models/NAME.
pub async fn model(State(app): State<Arc<App>>, Path(name): Path<String>) -> Answered {
    match name == app.model {
        true => Ok(Json(description(&app))),
        false => Err(app.unknown_model(&name)),
    }
}

/// POST /tokenize: the ids of a text (`prompt`) or of a conversation (`messages`).
pub async fn tokenize(State(app): State<Arc<App>>, fields: Fields) -> Answered {
    let ids = parsed(&app, fields, |app, fields| {
        app.check(fields)?;
        let add_special_tokens = fields.flag("add_special_tokens")?;
        let (text, default) = match fields.take::<String>("prompt", "a text")? {
            Some(text) => (text, true),
            None => (render(app, fields)?, false),
        };
        Ok(app.tokenizer.encode(&text, add_special_tokens.unwrap_or(default))?)
    });
    let ids = ids.await?;
    Ok(Json(json!({ "count": ids.len(), "max_model_len": app.context, "tokens": ids })))
}

/// POST /detokenize: the text of ids (`tokens`).
pub async fn detokenize(State(app): State<Arc<App>>, fields: Fields) -> Answered {
    let text = parsed(&app, fields, |app, fields| {
        app.check(fields)?;
        let ids: Vec<u32> = fields.need("tokens", "a list of token ids")?;
        app.check_ids("tokens", &ids)?;
        Ok(app.tokenizer.decode(&ids, false)?)
    });
    Ok(Json(json!({ "prompt": text.await? })))
}

/// GET /health: whether requests are answered.
pub async fn health(State(app): State<Arc<App>>) -> Answered {
    let load = app.submitter.load();
    let why = match (load.is_ready(), load.is_closed()) {
        (true, false) => return Ok(Json(json!({ "status": "ok" }))),
        (_, true) => "the server shuts down",
        (false, false) => "the model is being loaded",
    };
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, why))
}

/// GET /live: whether the server runs.
pub async fn live() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// GET /metrics.
pub async fn metrics(State(app): State<Arc<App>>) -> Result<impl IntoResponse, ApiError> {
    match app.metrics.text(app.submitter.load()) {
        Ok(text) => Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text)),
        Err(error) => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
