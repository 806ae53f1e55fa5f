//! The HTTP server: OpenAI's API over the [`engine`](crate::engine).
//!
//! [`App`] has what every request needs. A handler takes a request's fields one by one into a call, hands the call to the
//! engine and gives back an answer, whole or as server-sent events. What is known and cannot be honoured is an error,
//! never ignored.

mod access;
mod answer;
mod app;
mod chat;
mod completions;
mod error;
mod fields;
mod logprobs;
mod metrics;
mod models;
mod options;
mod server;

use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use serde_json::Value;

pub use self::app::{App, now};
pub use self::metrics::Metrics;
pub use self::server::{Access, Server};

use self::error::ApiError;
use self::fields::Fields;

/// What a handler gives back that answers with an object.
type Answered = Result<Json<Value>, ApiError>;

/// What `parse` makes of a request. It runs in a thread of its own: a long text takes its time to tokenize.
async fn parsed<T: Send + 'static>(
    app: &Arc<App>,
    mut fields: Fields,
    parse: impl FnOnce(&App, &mut Fields) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let app = app.clone();
    let task = tokio::task::spawn_blocking(move || parse(&app, &mut fields));
    task.await.unwrap_or_else(|e| Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())))
}
