//! fasq-serve as its clients meet it.

use serde_json::{Value, json};

use crate::serve_client::Server;

const FIXTURE: &str = "llama3-tiny-sharded";
const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn chat(content: &str) -> Value {
    json!({ "messages": [{ "role": "user", "content": content }], "temperature": 0, "max_tokens": 12 })
}

/// A text that goes on until the context is full.
fn endless() -> Value {
    json!({ "prompt": [75, 298, 68], "temperature": 0, "max_tokens": 100000, "stream": true,
        "logit_bias": { "481": -100 } })
}

fn with(mut body: Value, more: Value) -> Value {
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// The status of an error of the API's form, with its param and code.
fn error((status, body): (u16, Value)) -> (u16, Value, Value) {
    let error = &body["error"];
    assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
    (status, error["param"].clone(), error["code"].clone())
}

#[test]
fn a_chat_is_the_same_streamed_and_whole() {
    let server = Server::start(FIXTURE, &[]);
    let body = chat("licensee may copy");
    let (status, whole) = server.post(CHAT, &body);
    assert_eq!((status, &whole["object"]), (200, &json!("chat.completion")), "{whole}");
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(["length", "stop"].contains(&choice["finish_reason"].as_str().unwrap()));

    let streamed = with(body.clone(), json!({ "stream": true, "stream_options": { "include_usage": true } }));
    let mut chunks = server.open(CHAT, &streamed).chunks();
    let usage = chunks.pop().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
    let cached = &usage["usage"]["prompt_tokens_details"]["cached_tokens"];
    assert_eq!(cached.as_u64().unwrap() + 1, usage["usage"]["prompt_tokens"].as_u64().unwrap());
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], choice["finish_reason"]);
    let pieces = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert_eq!(json!(pieces.collect::<String>()), choice["message"]["content"]);

    let parts = json!([{ "type": "text", "text": "licensee " }, { "type": "text", "text": "may copy" }]);
    let (_, of_parts) =
        server.post(CHAT, &with(body, json!({ "messages": [{ "role": "user", "content": parts }] })));
    assert_eq!(of_parts["choices"], whole["choices"]);
}

#[test]
fn a_prompt_of_ids_or_text_gives_n_texts() {
    let server = Server::start(FIXTURE, &[]);
    let tokenize = json!({ "prompt": "licensee may copy" });
    let (_, tokens) = server.post("/tokenize", &tokenize);
    let ids = &tokens["tokens"];
    assert_eq!(tokens["count"], ids.as_array().unwrap().len());
    let (_, text) = server.post("/detokenize", &json!({ "tokens": &ids.as_array().unwrap()[1..] }));
    assert_eq!(text["prompt"], tokenize["prompt"]);
    let (_, rendered) = server.post("/apply-template", &chat("licensee may copy"));
    assert!(rendered["prompt"].as_str().unwrap().contains("licensee may copy"));

    let greedy = json!({ "temperature": 0, "max_tokens": 8 });
    let complete = |more: Value| {
        let (status, body) = server.post(COMPLETIONS, &with(greedy.clone(), more));
        assert_eq!(status, 200, "{body}");
        body
    };
    let of_text = complete(json!({ "prompt": tokenize["prompt"] }));
    let of_ids = complete(json!({ "prompt": ids }));
    assert_eq!(of_text["choices"], of_ids["choices"]);
    let text = of_text["choices"][0]["text"].as_str().unwrap();
    assert_eq!(of_text["usage"]["prompt_tokens"], tokens["count"]);

    let both = complete(json!({ "prompt": ["licensee may copy", "hat each"], "n": 2, "echo": true }));
    let choices = both["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert_eq!(choices[1]["text"], json!(format!("licensee may copy{text}")));
    assert_eq!(choices[2]["text"], choices[3]["text"]);
    let none = complete(json!({ "prompt": ids, "max_tokens": 0 }));
    assert_eq!((&none["choices"][0]["text"], &none["usage"]["completion_tokens"]), (&json!(""), &json!(0)));

    let second: String = text.chars().skip(2).take(2).collect();
    let stopped = complete(json!({ "prompt": ids, "stop": [second] }));
    let (before, _) = text.split_once(&second).unwrap();
    let choice = &stopped["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(before), &json!("stop")));

    let random = json!({ "prompt": ids, "temperature": 1.5, "top_p": 1, "seed": 7, "n": 2 });
    let (one, other) = (complete(random.clone()), complete(random));
    assert_eq!(one["choices"], other["choices"], "the same seed");
    assert_ne!(one["choices"][0]["text"], one["choices"][1]["text"], "texts of a call differ");
}

#[test]
fn log_probabilities_name_the_token_that_was_taken() {
    let server = Server::start(FIXTURE, &[]);
    let body = with(chat("licensee may copy"), json!({ "logprobs": true, "top_logprobs": 2 }));
    let (status, whole) = server.post(CHAT, &body);
    assert_eq!(status, 200, "{whole}");
    let choice = &whole["choices"][0];
    let content = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!(whole["usage"]["completion_tokens"], content.len());
    for token in content {
        let logprob = token["logprob"].as_f64().unwrap();
        let second = token["top_logprobs"][1]["logprob"].as_f64().unwrap();
        assert_eq!(
            (&token["top_logprobs"][0]["token"], &token["top_logprobs"][0]["logprob"]),
            (&token["token"], &token["logprob"])
        );
        assert!(second <= logprob && logprob < 0.0, "{token}");
    }
    let (_, without) = server.post(CHAT, &chat("licensee may copy"));
    assert_eq!(
        (&without["choices"][0]["message"], &without["choices"][0]["logprobs"]),
        (&choice["message"], &json!(null))
    );
    let streamed = server.open(CHAT, &with(body, json!({ "stream": true }))).chunks();
    let pieces = streamed.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array());
    let pieces: Vec<&Value> = pieces.flatten().collect();
    assert_eq!(pieces.len(), content.len());
    for (piece, token) in pieces.into_iter().zip(content) {
        assert_eq!(piece["token"], token["token"]);
        // The prompt is in the slot now: its last token is read alone, by kernels that add in another order.
        let difference = piece["logprob"].as_f64().unwrap() - token["logprob"].as_f64().unwrap();
        assert!(difference.abs() < 1e-4, "{piece} {token}");
    }

    let prompt = json!({ "prompt": [75, 298, 68], "max_tokens": 6, "logprobs": 1, "seed": 1 });
    let (status, whole) = server.post(COMPLETIONS, &prompt);
    assert_eq!(status, 200, "{whole}");
    let logprobs = &whole["choices"][0]["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(whole["usage"]["completion_tokens"], logprobs[list].as_array().unwrap().len(), "{list}");
    }
    let streamed = server.open(COMPLETIONS, &with(prompt, json!({ "stream": true }))).chunks();
    let offsets = streamed.iter().filter_map(|chunk| chunk["choices"][0]["logprobs"]["text_offset"].get(0));
    assert_eq!(&offsets.cloned().collect::<Vec<_>>(), logprobs["text_offset"].as_array().unwrap());
}

#[test]
fn clients_at_once_get_what_they_get_one_by_one() {
    let server = Server::start(FIXTURE, &["--max-seqs", "3"]);
    let prompts: Vec<String> =
        (1..9).map(|i| "licensee may copy and distribute ".repeat(i) + &i.to_string()).collect();
    let ask = |prompt: &String| {
        let body = json!({ "prompt": prompt, "temperature": 0, "max_tokens": 20 });
        let (status, answer) = server.post(COMPLETIONS, &body);
        assert_eq!(status, 200, "{answer}");
        answer["choices"].clone()
    };
    let one_by_one: Vec<Value> = prompts.iter().map(ask).collect();
    let at_once: Vec<Value> = std::thread::scope(|scope| {
        let asked: Vec<_> = prompts.iter().map(|prompt| scope.spawn(move || ask(prompt))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(at_once, one_by_one);
    assert!(server.metric("fasq:generation_tokens_total") > 0.0);
    server.wait_for("fasq:num_requests_running", 0.0);
}

#[test]
fn a_client_that_leaves_frees_its_slot_and_a_full_queue_is_told() {
    let server = Server::start(FIXTURE, &["--max-seqs", "1", "--queue", "0"]);
    let mut stream = server.open(COMPLETIONS, &endless());
    assert!(stream.next().unwrap().starts_with('{'));
    server.wait_for("fasq:num_requests_running", 1.0);
    let full = server.post(COMPLETIONS, &json!({ "prompt": "a" }));
    assert_eq!(error(full), (429, json!(null), json!("rate_limit_exceeded")));
    drop(stream);
    server.wait_for("fasq:num_requests_running", 0.0);
    server.wait_for("fasq:request_success_total{finished_reason=\"abort\"}", 1.0);
    let (status, _) = server.post(COMPLETIONS, &json!({ "prompt": "a", "max_tokens": 1 }));
    assert_eq!(status, 200);
}

#[test]
fn mistakes_are_errors_that_name_the_field() {
    let server = Server::start(FIXTURE, &["--ctx", "64"]);
    let prompt = json!({ "prompt": "a" });
    for (more, param) in [
        (json!({ "prompt": null }), "prompt"),
        (json!({ "prompt": "" , "add_special_tokens": false }), "prompt"),
        (json!({ "prompt": [1, 60000] }), "prompt"),
        (json!({ "prompt": [] }), "prompt"),
        (json!({ "temperature": -1 }), "temperature"),
        (json!({ "temperature": "hot" }), "temperature"),
        (json!({ "top_p": 2 }), "top_p"),
        (json!({ "top_k": -2 }), "top_k"),
        (json!({ "n": 0 }), "n"),
        (json!({ "n": 1000000000000u64 }), "n"),
        (json!({ "max_tokens": -1 }), "max_tokens"),
        (json!({ "stop": "" }), "stop"),
        (json!({ "logit_bias": { "60000": 1 } }), "logit_bias"),
        (json!({ "presence_penalty": 3 }), "presence_penalty"),
        (json!({ "logprobs": 21 }), "logprobs"),
        (json!({ "logprobs": 1, "echo": true }), "echo"),
        (json!({ "suffix": "x" }), "suffix"),
        (json!({ "stream_options": 3 }), "stream_options"),
    ] {
        let (status, found, _) = error(server.post(COMPLETIONS, &with(prompt.clone(), more.clone())));
        assert_eq!((status, found), (400, json!(param)), "{more}");
    }
    for (more, param) in [
        (json!({ "tools": [{}] }), "tools"),
        (json!({ "response_format": { "type": "json_object" } }), "response_format"),
        (json!({ "messages": [] }), "messages"),
        (json!({ "messages": [{ "role": "tool", "content": "a" }] }), "messages[0].role"),
    ] {
        let (status, found, _) = error(server.post(CHAT, &with(chat("a"), more.clone())));
        assert_eq!((status, found), (400, json!(param)), "{more}");
    }
    let (status, long) = server.post(COMPLETIONS, &json!({ "prompt": vec![5; 65] }));
    let message = long["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400);
    assert!(message.contains("64") && message.contains("65"), "{message}");
    let (status, accepted) =
        server.post(COMPLETIONS, &with(prompt.clone(), json!({ "unknown": [1], "user": "x" })));
    assert_eq!(status, 200, "{accepted}");

    let model = with(prompt, json!({ "model": "other" }));
    assert_eq!(error(server.post(COMPLETIONS, &model)), (404, json!("model"), json!("model_not_found")));
    for (path, body, headers, expected) in [
        ("/nothing", "{}", &[][..], 404),
        ("/health", "{}", &[], 405),
        (COMPLETIONS, "{", &[], 400),
        (COMPLETIONS, "[]", &[], 400),
        (COMPLETIONS, &"[".repeat(100_000), &[], 400),
        (COMPLETIONS, &" ".repeat((8 << 20) + 1), &[], 413),
        (COMPLETIONS, "{}", &[("Content-Type", "text/plain")], 415),
    ] {
        let (status, text) = server.post_text(path, body, headers);
        let body = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}: {text}"));
        assert_eq!(error((status, body)).0, expected, "{path}");
    }
    let (status, models) = server.get("/v1/models", &[]);
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((status, &models["data"][0]["max_model_len"]), (200, &json!(64)));
    assert_eq!(server.get(&format!("/v1/models/{FIXTURE}"), &[]).0, 200);
    assert_eq!(server.get("/v1/models/other", &[]).0, 404);
}

#[test]
fn a_key_closes_everything_but_health() {
    let server = Server::start(FIXTURE, &["--api-key", "secret", "--cors-origin", "https://example.com"]);
    for (key, expected) in [(None, 401), (Some("Bearer secreT"), 401), (Some("Bearer secret"), 200)] {
        let headers: Vec<(&str, &str)> = key.map(|key| ("Authorization", key)).into_iter().collect();
        for path in ["/v1/models", "/metrics"] {
            assert_eq!(server.get(path, &headers).0, expected, "{path} {key:?}");
        }
        let (status, text) = server.post_text("/tokenize", "{\"prompt\":\"a\"}", &headers);
        assert_eq!(status, expected);
        if expected == 401 {
            assert_eq!(error((status, serde_json::from_str(&text).unwrap())).2, "invalid_api_key");
        }
        assert_eq!((server.get("/health", &headers).0, server.get("/live", &headers).0), (200, 200));
    }
}

#[test]
fn a_signal_lets_texts_end_or_says_why_they_do_not() {
    for (timeout, ends_well) in [("60", true), ("0", false)] {
        let mut server = Server::start(FIXTURE, &["--shutdown-timeout", timeout]);
        let body = with(endless(), json!({ "max_tokens": if ends_well { 100 } else { 100_000 } }));
        let mut stream = server.open(COMPLETIONS, &body);
        stream.next().unwrap();
        server.terminate();
        let mut last = String::new();
        while let Some(data) = stream.next() {
            last = data;
        }
        match ends_well {
            true => assert_eq!(last, "[DONE]"),
            false => assert!(last.contains("\"error\"") && last.contains("shuts down"), "{last}"),
        }
        assert_eq!(server.exit_code(), Some(0), "--shutdown-timeout {timeout}");
    }
}
