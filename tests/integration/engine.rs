//! Continuous batching: every text is what it is alone, whatever runs beside it, is cancelled or fails.

use std::path::Path;

use fasq::backend::Backend;
use fasq::backend::cpu::Cpu;
use fasq::engine::{Adjustments, Engine, Event, Failure, Outcome, Place, Request, Submitter, Usage, queue};
use fasq::generate::{Limits, Sampler, Sampling, StopReason, Tokenizer};
use fasq::model::{Batch, Model, Session, SessionOptions, Source};
use futures_channel::mpsc::{UnboundedReceiver, unbounded};
use pollster::block_on;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::session::{Faulty, model as faulty_model};

const OPTIONS: SessionOptions = SessionOptions { slots: 3, context: 48, max_rows: 8 };

fn source(fixture: &str) -> Source {
    Source::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture)).unwrap()
}

fn tokenizer(source: &Source) -> Tokenizer {
    Tokenizer::of(source.assets(), source.config().vocab).unwrap()
}

/// A request of the likeliest tokens, and where its events come.
fn request(place: Place, prompt: &[u32], tokens: usize) -> (Request, UnboundedReceiver<Event>) {
    let (events, receiver) = unbounded();
    let request = Request {
        prompt: prompt.to_vec(),
        sampler: Sampler::new(Sampling::greedy()).unwrap(),
        adjustments: Adjustments::default(),
        limits: Limits { tokens: Some(tokens), stop: vec![] },
        stop_tokens: vec![],
        logprobs: None,
        index: 0,
        events,
        place,
    };
    (request, receiver)
}

fn place(submitter: &Submitter) -> Place {
    submitter.reserve(1).unwrap().remove(0)
}

/// The tokens of a text, and how it ended.
fn received(receiver: &mut UnboundedReceiver<Event>) -> (Vec<u32>, Option<Outcome>) {
    let mut all = vec![];
    while let Ok(event) = receiver.try_recv() {
        match event.outcome {
            Outcome::Text { token, .. } => all.push(token),
            end => return (all, Some(end)),
        }
    }
    (all, None)
}

/// The likeliest tokens after a prompt in a session of its own, whole prompt first.
fn alone<B: Backend>(model: &Model<B>, tokenizer: &Tokenizer, prompt: &[u32], tokens: usize) -> Vec<u32> {
    let options = SessionOptions { slots: 1, max_rows: OPTIONS.context, ..OPTIONS };
    let mut session = Session::new(model, options).unwrap();
    let (mut text, mut written) = (prompt.to_vec(), vec![]);
    while written.len() < tokens && text.len() <= OPTIONS.context {
        let held = session.position(0).unwrap();
        let logits = block_on(session.forward(&Batch::of_slot(0, held, &text[held..], false))).unwrap();
        let token =
            Sampler::new(Sampling::greedy()).unwrap().sample(&logits[..tokenizer.len()], &[]).unwrap();
        text.push(token);
        written.push(token);
        if model.config().eos.contains(&token) || tokenizer.ends().contains(&token) {
            break;
        }
    }
    written
}

/// A request: the step at which it comes, its prompt as lengths of a beginning that others have too and of an end of its
/// own, tokens to write, and the step at which it is cancelled.
type Plan = (usize, usize, usize, usize, Option<usize>);

fn mixes(fixture: &str) {
    let source = source(fixture);
    let (model, tokenizer) = (Model::load(Cpu, &source).unwrap(), tokenizer(&source));
    let plan = (0..25usize, 1..20usize, 0..20usize, 1..14usize, prop::option::weighted(0.3, 0..40usize));
    let plans = prop::collection::vec(plan, 8..14);
    let config = Config { cases: 4, max_shrink_iters: 32, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha));
    runner
        .run(&plans, |plans: Vec<Plan>| {
            let prompt = |id: usize| -> Vec<u32> {
                let (_, shared, own, ..) = plans[id];
                let shared = (0..shared).map(|i| 40 + 3 * i as u32);
                shared.chain((0..own).map(|i| (300 + 31 * id + 7 * i) as u32 % 470)).collect()
            };
            let (submitter, _requests) = queue(OPTIONS.slots, plans.len());
            let mut engine = Engine::new(&model, &tokenizer, OPTIONS).unwrap();
            let mut receivers: Vec<Option<UnboundedReceiver<Event>>> = plans.iter().map(|_| None).collect();
            let mut now = 0;
            while now < 25 || !engine.is_idle() {
                for (id, (at, .., tokens, cancelled)) in plans.iter().enumerate() {
                    if *at == now {
                        let (request, receiver) = request(place(&submitter), &prompt(id), *tokens);
                        engine.push(request);
                        receivers[id] = Some(receiver);
                    }
                    if cancelled.is_some_and(|cancelled| cancelled <= now) {
                        receivers[id] = None;
                    }
                }
                block_on(engine.step());
                now += 1;
                prop_assert!(now < 2000, "the engine does not come to an end");
            }
            prop_assert_eq!(submitter.load().taken(), 0, "a request that has ended has a place");
            for (id, receiver) in receivers.iter_mut().enumerate() {
                let Some(receiver) = receiver else { continue };
                let (tokens, end) = received(receiver);
                let expected = alone(&model, &tokenizer, &prompt(id), plans[id].3);
                prop_assert_eq!(&tokens, &expected, "request {}", id);
                let Some(Outcome::End { usage, .. }) = end else { return Err(TestCaseError::fail("no end")) };
                prop_assert_eq!(usage.prompt_tokens, prompt(id).len());
                prop_assert!(usage.cached_tokens < usage.prompt_tokens);
                prop_assert_eq!(usage.generated_tokens, tokens.len());
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn texts_are_what_they_are_alone() {
    mixes("llama3-tiny-sharded");
}

#[test]
fn texts_of_a_delta_net_are_what_they_are_alone() {
    mixes("qwen35-tiny");
}

/// Runs what was pushed to its end.
fn finish<B: Backend>(engine: &mut Engine<'_, B>) {
    for _ in 0..1000 {
        if engine.is_idle() {
            return;
        }
        block_on(engine.step());
    }
    panic!("the engine does not come to an end");
}

#[test]
fn the_next_turn_reads_only_what_is_new() {
    for fixture in ["llama3-tiny-sharded", "qwen35-tiny"] {
        let source = source(fixture);
        let (model, tokenizer) = (Model::load(Cpu, &source).unwrap(), tokenizer(&source));
        let (submitter, _requests) = queue(OPTIONS.slots, 8);
        let mut engine = Engine::new(&model, &tokenizer, OPTIONS).unwrap();
        let first: Vec<u32> = (50..70).collect();
        let (request_1, mut events) = request(place(&submitter), &first, 4);
        engine.push(request_1);
        finish(&mut engine);
        let (written, _) = received(&mut events);
        let second = [&first[..], &written, &[9, 8, 7]].concat();
        let (request_2, mut events) = request(place(&submitter), &second, 4);
        engine.push(request_2);
        finish(&mut engine);
        let (tokens, end) = received(&mut events);
        assert_eq!(tokens, alone(&model, &tokenizer, &second, 4), "{fixture}");
        // The token written last was never read.
        let cached_tokens = first.len() + written.len() - 1;
        let expected = Usage { prompt_tokens: second.len(), cached_tokens, generated_tokens: tokens.len() };
        assert!(matches!(end, Some(Outcome::End { usage, .. }) if usage == expected), "{fixture}: {end:?}");
    }
}

#[test]
fn a_request_that_cannot_run_is_refused_alone() {
    let source = source("llama3-tiny-sharded");
    let (model, tokenizer) = (Model::load(Cpu, &source).unwrap(), tokenizer(&source));
    let (submitter, _requests) = queue(OPTIONS.slots, 8);
    let mut engine = Engine::new(&model, &tokenizer, OPTIONS).unwrap();
    let long: Vec<u32> = vec![5; OPTIONS.context + 1];
    let prompts = [&long[..], &[], &[60_000], &long[1..], &[5, 6]];
    let mut all: Vec<_> = prompts
        .map(|prompt| {
            let (request, events) = request(place(&submitter), prompt, 3);
            engine.push(request);
            events
        })
        .into();
    finish(&mut engine);
    for (events, why) in all[..3].iter_mut().zip(["48", "at least 1", "60000"]) {
        let (_, end) = received(events);
        assert!(
            matches!(&end, Some(Outcome::Failed(Failure::Request(message))) if message.contains(why)),
            "{end:?}"
        );
    }
    let (tokens, end) = received(&mut all[3]);
    assert!(matches!(end, Some(Outcome::End { reason: StopReason::Context, .. })), "{end:?}");
    assert_eq!(tokens.len(), 1, "a full context has the logits of one more token");
    assert_eq!(received(&mut all[4]).0, alone(&model, &tokenizer, &[5, 6], 3));
}

#[test]
fn a_device_error_ends_what_it_hits_and_the_engine_goes_on() {
    for fixture in ["llama3-tiny-sharded", "qwen35-tiny"] {
        let model: Model<Faulty> = faulty_model(fixture);
        let tokenizer = tokenizer(&source(fixture));
        let (submitter, _requests) = queue(OPTIONS.slots, 8);
        let mut engine = Engine::new(&model, &tokenizer, OPTIONS).unwrap();
        let prompts: [&[u32]; 2] = [&[5, 6, 7], &[5, 6, 7, 8, 9, 10, 11, 12, 13]];
        let mut events: Vec<UnboundedReceiver<Event>> = vec![];
        let push = |engine: &mut Engine<'_, Faulty>, events: &mut Vec<_>| {
            for prompt in prompts {
                let (request, receiver) = request(place(&submitter), prompt, 6);
                engine.push(request);
                events.push(receiver);
            }
        };
        push(&mut engine, &mut events);
        block_on(engine.step());
        model.backend().fail.set(true);
        block_on(engine.step());
        assert!(engine.is_idle(), "{fixture}");
        push(&mut engine, &mut events);
        finish(&mut engine);
        for (i, events) in events.iter_mut().enumerate() {
            let (tokens, end) = received(events);
            match (i, end) {
                (0 | 1, Some(Outcome::Failed(Failure::Device(why)))) => {
                    assert!(why.contains("the device was lost"))
                }
                (2 | 3, Some(Outcome::End { usage, .. })) => {
                    assert_eq!(tokens, alone(&model, &tokenizer, prompts[i - 2], 6), "{fixture}");
                    assert_eq!(usage.cached_tokens, 0, "{fixture}: what a failed step left is not used");
                }
                (_, end) => panic!("{fixture}, request {i}: {end:?}"),
            }
        }
    }
}
