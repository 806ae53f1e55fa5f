//! [`Fields`]: the JSON object of a request, whose fields are taken one by one.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::error::ApiError;

/// How long a client may take to send a request.
const BODY_TIME: Duration = Duration::from_secs(60);

/// Fields that are known and cannot be honoured, each with the values, as compact JSON, that ask for nothing. null never
/// does.
const UNSUPPORTED: [(&str, &[&str]); 29] = [
    ("audio", &[]),
    ("best_of", &["1"]),
    ("continue_final_message", &["false"]),
    ("documents", &["[]"]),
    ("function_call", &["\"none\""]),
    ("functions", &["[]"]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("ignore_eos", &["false"]),
    ("length_penalty", &["1", "1.0"]),
    ("min_tokens", &["0"]),
    ("modalities", &["[\"text\"]"]),
    ("prediction", &[]),
    ("prompt_logprobs", &[]),
    ("reasoning_effort", &[]),
    ("response_format", &["{\"type\":\"text\"}"]),
    ("skip_special_tokens", &["true"]),
    ("store", &["false"]),
    ("structured_outputs", &[]),
    ("suffix", &["\"\""]),
    ("tool_choice", &["\"none\""]),
    ("tools", &["[]"]),
    ("truncate_prompt_tokens", &[]),
    ("typical_p", &["1", "1.0"]),
    ("use_beam_search", &["false"]),
    ("verbosity", &[]),
    ("web_search_options", &[]),
];

/// The fields of a request that have not been taken. null counts as a field that is not there.
#[derive(Debug)]
pub struct Fields(Map<String, Value>);

impl Fields {
    /// Takes a field.
    ///
    /// # Errors
    /// It has another type.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, ApiError> {
        let Some(value) = self.0.remove(name).filter(|value| !value.is_null()) else { return Ok(None) };
        match T::deserialize(&value) {
            Ok(field) => Ok(Some(field)),
            Err(_) => Err(ApiError::expected(name, expected, value)),
        }
    }

    /// Takes a field that must be there.
    pub fn need<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<T, ApiError> {
        let missing = || ApiError::field(name, format!("{name}: expected {expected}, found nothing"));
        self.take(name, expected)?.ok_or_else(missing)
    }

    /// Takes a number that `is_good`.
    pub fn number(
        &mut self,
        name: &str,
        expected: &str,
        is_good: impl Fn(f32) -> bool,
    ) -> Result<Option<f32>, ApiError> {
        match self.take::<f32>(name, expected)? {
            Some(number) if !number.is_finite() || !is_good(number) => {
                Err(ApiError::expected(name, expected, number))
            }
            number => Ok(number),
        }
    }

    pub fn flag(&mut self, name: &str) -> Result<Option<bool>, ApiError> {
        self.take(name, "true or false")
    }

    /// Fails if a field asks for what this server cannot do.
    pub fn refuse_unsupported(&self) -> Result<(), ApiError> {
        for (name, idle) in UNSUPPORTED {
            let Some(value) = self.0.get(name).filter(|value| !value.is_null()) else { continue };
            let text = value.to_string();
            if !idle.contains(&text.as_str()) {
                let why = format!("{name}: this server does not support it yet");
                return Err(ApiError::field(name, why).code("unsupported_parameter"));
            }
        }
        Ok(())
    }
}

impl TryFrom<Value> for Fields {
    type Error = ApiError;

    fn try_from(value: Value) -> Result<Self, ApiError> {
        match value {
            Value::Object(fields) => Ok(Self(fields)),
            _ => Err(ApiError::new(StatusCode::BAD_REQUEST, "body: expected a JSON object")),
        }
    }
}

impl<S: Send + Sync> FromRequest<S> for Fields {
    type Rejection = ApiError;

    /// Only JSON that calls itself so: a page of another origin can send it only after the browser has asked this server.
    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let content_type = request.headers().get(header::CONTENT_TYPE);
        let is_json = |value: &str| value.split(';').next().is_some_and(|t| t.trim() == "application/json");
        if !content_type.and_then(|value| value.to_str().ok()).is_some_and(is_json) {
            let why = "Content-Type: expected application/json";
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        let late =
            |_| ApiError::new(StatusCode::REQUEST_TIMEOUT, "the request's body did not arrive in time");
        let body =
            tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state)).await.map_err(late)?;
        let body = body.map_err(|rejection| ApiError::new(rejection.status(), rejection.body_text()))?;
        let bad = |error| ApiError::new(StatusCode::BAD_REQUEST, format!("body: not JSON: {error}"));
        serde_json::from_slice::<Value>(&body).map_err(bad)?.try_into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(value: Value) -> Fields {
        Fields::try_from(value).unwrap()
    }

    #[test]
    fn fields_have_types_and_ranges() {
        let mut good = fields(json!({ "n": 2, "p": 0.5, "none": null }));
        assert_eq!(good.take::<u32>("n", "a count").unwrap(), Some(2));
        assert_eq!(good.number("p", "a probability", |p| p <= 1.0).unwrap(), Some(0.5));
        assert_eq!(good.flag("none").unwrap(), None);
        let mut bad = fields(json!({ "n": -1, "p": 1e300, "flag": "x" }));
        for error in [
            bad.take::<u32>("n", "a count").unwrap_err(),
            bad.number("p", "a probability", |_| true).unwrap_err(),
            bad.flag("flag").unwrap_err(),
            bad.need::<String>("prompt", "a text").unwrap_err(),
        ] {
            assert!(error.json()["error"]["param"].is_string(), "{error:?}");
        }
        assert!(Fields::try_from(json!([1])).is_err());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_unless_it_asks_for_nothing() {
        assert!(UNSUPPORTED.is_sorted());
        let idle = json!({ "tools": [], "tool_choice": "none", "suffix": null, "best_of": 1, "unknown": 3,
            "response_format": { "type": "text" } });
        assert!(fields(idle).refuse_unsupported().is_ok());
        for (name, value) in [
            ("tools", json!([{}])),
            ("tool_choice", json!("auto")),
            ("best_of", json!(2)),
            ("response_format", json!({ "type": "json_object" })),
        ] {
            let error = fields(json!({ name: value })).refuse_unsupported().unwrap_err();
            assert_eq!(error.json()["error"]["param"], name);
        }
    }
}
