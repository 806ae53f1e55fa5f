//! Who may ask: the API key, and pages of other origins.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::ConstantTimeEq;
use tower_http::cors::{Any, CorsLayer};

use super::error::ApiError;
use crate::{Error, Result};

/// Paths that need no key.
const OPEN: [&str; 2] = ["/health", "/live"];

/// Answers 401 to what does not have the key.
pub async fn authorize(State(key): State<Arc<str>>, request: Request, next: Next) -> Response {
    let header = request.headers().get(header::AUTHORIZATION);
    let given = header.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    // Independent of how much of the key is right.
    let is_right = given.is_some_and(|given| given.ct_eq(key.as_bytes()).into());
    match is_right || OPEN.contains(&request.uri().path()) {
        true => next.run(request).await,
        false => ApiError::new(StatusCode::UNAUTHORIZED, "Authorization: expected Bearer and the API key")
            .code("invalid_api_key")
            .into_response(),
    }
}

/// Lets pages of these origins ask, or of any for `*`.
///
/// # Errors
/// An origin is no header value.
pub fn cors(origins: &[String]) -> Result<CorsLayer> {
    let layer =
        CorsLayer::new().allow_methods(Any).allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION]);
    if origins.iter().any(|origin| origin == "*") {
        return Ok(layer.allow_origin(Any));
    }
    let value = |origin: &String| {
        HeaderValue::from_str(origin).map_err(|e| Error::invalid(format!("--cors-origin {origin:?}"), e))
    };
    Ok(layer.allow_origin(origins.iter().map(value).collect::<Result<Vec<_>>>()?))
}
