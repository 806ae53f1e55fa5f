//! [`Answer`]: the texts of one call on their way to the client, whole or in pieces.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::http::StatusCode;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_channel::mpsc::UnboundedReceiver;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};

use super::app::{Call, now};
use super::error::ApiError;
use super::logprobs::{self, Named};
use super::metrics::Record;
use crate::engine::{Event, Outcome, Usage};
use crate::generate::{StopReason, Tokenizer};

/// The texts of one call. Dropping it cancels those that have not ended.
pub struct Answer {
    model: String,
    tokenizer: Arc<Tokenizer>,
    id: String,
    created: u64,
    call: Call,
    events: UnboundedReceiver<Event>,
    record: Record,
    /// What is known of each text.
    choices: Vec<Choice>,
}

#[derive(Clone, Default)]
struct Choice {
    text: String,
    finish: Option<&'static str>,
    usage: Usage,
    /// Its tokens with their log probabilities, where they are wanted and the answer is sent whole.
    tokens: Vec<Named>,
    /// Characters of the tokens that a stream has named.
    offset: usize,
}

/// The reason as OpenAI's API has it.
fn finish_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::EndOfText | StopReason::StopString => "stop",
        StopReason::Tokens | StopReason::Context => "length",
        StopReason::Cancelled | StopReason::Failed => "error",
    }
}

impl Answer {
    pub fn new(
        model: String,
        tokenizer: Arc<Tokenizer>,
        call: Call,
        events: UnboundedReceiver<Event>,
        record: Record,
    ) -> Self {
        let prefix = if call.is_chat { "chatcmpl" } else { "cmpl" };
        let id = format!("{prefix}-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        let choices = vec![Choice::default(); call.prompts.len() * call.options.n];
        Self { model, tokenizer, id, created: now(), call, events, record, choices }
    }

    /// The response: the whole object once every text has ended, or a stream that begins at once.
    pub async fn response(self) -> Result<Response, ApiError> {
        match self.call.options.stream {
            true => Ok(self.stream().into_response()),
            false => self.whole().await.map(IntoResponse::into_response),
        }
    }

    async fn whole(mut self) -> Result<Json<Value>, ApiError> {
        while !self.has_ended() {
            let (index, outcome) = self.next().await;
            match outcome? {
                Piece::Text(text, token) => {
                    self.choices[index].text += &text;
                    self.choices[index].tokens.extend(token);
                }
                Piece::End(finish, usage) => {
                    self.choices[index].finish = Some(finish);
                    self.choices[index].usage = usage;
                }
            }
        }
        let choices: Vec<Value> = (0..self.choices.len())
            .map(|index| {
                let Choice { text, finish, tokens, .. } = &self.choices[index];
                let logprobs = self.logprobs(tokens, 0);
                match self.call.is_chat {
                    true => json!({
                        "index": index,
                        "message": { "role": "assistant", "content": text, "refusal": null },
                        "logprobs": logprobs,
                        "finish_reason": finish,
                    }),
                    false => json!({
                        "index": index,
                        "text": format!("{}{text}", self.echo(index)),
                        "logprobs": logprobs,
                        "finish_reason": finish,
                    }),
                }
            })
            .collect();
        let object = if self.call.is_chat { "chat.completion" } else { "text_completion" };
        let mut whole = self.object(object, json!(choices));
        whole["usage"] = self.usage();
        Ok(Json(whole))
    }

    fn stream(self) -> Sse<impl stream::Stream<Item = Result<sse::Event, Infallible>>> {
        let first: VecDeque<String> = self.first_chunks().iter().map(Value::to_string).collect();
        let chunks = stream::unfold((self, first, false), |(mut answer, mut ready, mut over)| async move {
            while ready.is_empty() && !over {
                over = answer.advance(&mut ready).await;
            }
            let chunk = ready.pop_front()?;
            Some((Ok(sse::Event::default().data(chunk)), (answer, ready, over)))
        });
        Sse::new(chunks).keep_alive(KeepAlive::default())
    }

    /// Waits for an event and adds its chunks; true if they are the last.
    async fn advance(&mut self, ready: &mut VecDeque<String>) -> bool {
        let (index, outcome) = self.next().await;
        match outcome {
            Ok(Piece::Text(text, None)) if text.is_empty() => {}
            Ok(Piece::Text(text, token)) => {
                let mut chunk = self.chunk(index, Some(&text), None);
                if let Some(token) = token {
                    let choice = &mut self.choices[index];
                    let offset = choice.offset;
                    choice.offset += token.characters();
                    chunk["choices"][0]["logprobs"] = self.logprobs(&[token], offset);
                }
                ready.push_back(chunk.to_string());
            }
            Ok(Piece::End(finish, usage)) => {
                self.choices[index].finish = Some(finish);
                self.choices[index].usage = usage;
                ready.push_back(self.chunk(index, None, Some(finish)).to_string());
            }
            Err(error) => {
                ready.push_back(error.json().to_string());
                return true;
            }
        }
        let over = self.has_ended();
        if over {
            if self.call.options.include_usage {
                let mut chunk = self.object(self.chunk_object(), json!([]));
                chunk["usage"] = self.usage();
                ready.push_back(chunk.to_string());
            }
            ready.push_back("[DONE]".into());
        }
        over
    }

    /// The next event of a text.
    async fn next(&mut self) -> (usize, Result<Piece, ApiError>) {
        let Some(event) = self.events.next().await else {
            return (0, Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine has stopped")));
        };
        self.record.see(&event);
        let piece = match event.outcome {
            Outcome::Text { text, token, logprobs } => {
                let named = logprobs.map(|logprobs| Named::new(&self.tokenizer, token, &logprobs));
                Ok(Piece::Text(text, named))
            }
            Outcome::End { reason, usage } => Ok(Piece::End(finish_reason(reason), usage)),
            Outcome::Failed(failure) => Err(failure.into()),
        };
        (event.index, piece)
    }

    /// Log probabilities in the form of the API that is answered, if they are wanted.
    fn logprobs(&self, tokens: &[Named], offset: usize) -> Value {
        match (self.call.options.logprobs, self.call.is_chat) {
            (None, _) => Value::Null,
            (Some(_), true) => logprobs::of_chat(tokens),
            (Some(_), false) => logprobs::of_completion(tokens, offset),
        }
    }

    fn has_ended(&self) -> bool {
        self.choices.iter().all(|choice| choice.finish.is_some())
    }

    fn echo(&self, index: usize) -> &str {
        self.call.echo.get(index / self.call.options.n).map_or("", String::as_str)
    }

    fn object(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }

    fn chunk_object(&self) -> &'static str {
        if self.call.is_chat { "chat.completion.chunk" } else { "text_completion" }
    }

    /// What a stream begins with: the role of each message, or the prompts that are echoed.
    fn first_chunks(&self) -> Vec<Value> {
        let all = 0..self.choices.len();
        if self.call.is_chat {
            let begin = |index| {
                self.chunk_of(json!({ "index": index, "delta": { "role": "assistant", "content": "" },
                "logprobs": null, "finish_reason": null }))
            };
            return all.map(begin).collect();
        }
        let echoed = all.filter(|index| !self.echo(*index).is_empty());
        echoed.map(|index| self.chunk(index, Some(self.echo(index)), None)).collect()
    }

    /// A piece of a text, or its end.
    fn chunk(&self, index: usize, text: Option<&str>, finish: Option<&str>) -> Value {
        self.chunk_of(match (self.call.is_chat, text) {
            (true, Some(text)) => json!({ "index": index, "delta": { "content": text },
                "logprobs": null, "finish_reason": finish }),
            (true, None) => json!({ "index": index, "delta": {}, "logprobs": null, "finish_reason": finish }),
            (false, text) => json!({ "index": index, "text": text.unwrap_or_default(),
                "logprobs": null, "finish_reason": finish }),
        })
    }

    fn chunk_of(&self, choice: Value) -> Value {
        let mut chunk = self.object(self.chunk_object(), json!([choice]));
        if self.call.options.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// Tokens of the call; a prompt counts once, however many texts it has.
    fn usage(&self) -> Value {
        let prompts = self.choices.iter().step_by(self.call.options.n).map(|choice| choice.usage);
        let (prompt, cached) = prompts.fold((0, 0), |(prompt, cached), usage| {
            (prompt + usage.prompt_tokens, cached + usage.cached_tokens)
        });
        let generated: usize = self.choices.iter().map(|choice| choice.usage.generated_tokens).sum();
        json!({
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": { "cached_tokens": cached },
        })
    }
}

/// What an event adds to a text.
enum Piece {
    Text(String, Option<Named>),
    End(&'static str, Usage),
}
