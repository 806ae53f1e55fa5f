//! [`ApiError`]: an error in the form of OpenAI's API.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::engine::{Failure, Refusal};

/// An error as a client gets it: a status, and `{"error": {"message", "type", "param", "code"}}`.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    message: String,
    /// The field of the request that is at fault.
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// 400: a field of the request is wrong.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, message);
        Self { param: Some(param.into()), ..error }
    }

    /// 400: `param` must be `expected`.
    pub fn expected(param: &str, expected: &str, found: impl ToString) -> Self {
        Self::field(param, format!("{param}: expected {expected}, found {}", shortened(found.to_string())))
    }

    /// With another status.
    pub fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// The code by which a program knows the error.
    pub fn code(self, code: &'static str) -> Self {
        Self { code: Some(code), ..self }
    }

    /// The object, as it is sent within a stream too.
    pub fn json(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({ "error": { "message": self.message, "type": kind, "param": self.param, "code": self.code } })
    }
}

/// A value of the request in an error: as much of it as helps.
fn shortened(value: String) -> String {
    const CHARACTERS: usize = 80;
    match value.char_indices().nth(CHARACTERS) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value,
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let header: Option<(HeaderName, &str)> = match self.status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Some((header::RETRY_AFTER, "1"))
            }
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            _ => None,
        };
        let mut response = (self.status, Json(self.json())).into_response();
        response.headers_mut().extend(header.map(|(name, value)| (name, HeaderValue::from_static(value))));
        response
    }
}

/// An error of the library that the request caused.
impl From<crate::Error> for ApiError {
    fn from(error: crate::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Full => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, "as many requests wait as may: try again later")
                    .code("rate_limit_exceeded")
            }
            Refusal::Closed => Failure::Shutdown.into(),
        }
    }
}

impl From<Failure> for ApiError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Request(message) => Self::new(StatusCode::BAD_REQUEST, message),
            Failure::Device(message) => Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
            Failure::Shutdown => Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server shuts down"),
        }
    }
}
