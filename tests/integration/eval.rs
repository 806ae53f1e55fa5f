//! Measures against the same figures computed another way: one token at a time, by the definitions.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fasq::backend::cpu::Cpu;
use fasq::eval::choices::choices;
use fasq::eval::divergence::divergence;
use fasq::eval::perplexity::{Protocol, perplexity};
use fasq::eval::tasks::Task;
use fasq::generate::Tokenizer;
use fasq::model::{Model, Session, SessionOptions, Source};
use pollster::block_on;
use serde_json::Value;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn load(name: &str) -> (Model<Cpu>, Tokenizer) {
    let source = Source::open(&fixture(name)).unwrap();
    let tokenizer =
        Tokenizer::new(source.assets().tokenizer.as_ref().unwrap(), source.config().vocab).unwrap();
    (Model::load(Cpu, &source).unwrap(), tokenizer)
}

/// ln of the probabilities of every token after each of these, one token at a time.
fn ln_probabilities(model: &Model<Cpu>, tokens: &[u32]) -> Vec<Vec<f64>> {
    let options = SessionOptions { slots: 1, context: tokens.len(), max_rows: 1 };
    let mut session = Session::new(model, options).unwrap();
    let one = |token: &u32| {
        let logits = block_on(session.prefill(0, &[*token])).unwrap();
        let sum: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        logits.iter().map(|l| f64::from(*l) - sum.ln()).collect()
    };
    tokens.iter().map(one).collect()
}

fn close(found: f64, expected: f64, tolerance: f64) -> bool {
    (found - expected).abs() <= tolerance * (1.0 + expected.abs())
}

fn fasq_eval(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasq-eval"));
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_LOG").args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let output = fasq_eval(args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line of a run that fails.
fn error(args: &[&str]) -> String {
    let output = fasq_eval(args);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.starts_with("error: ") && told.lines().count() == 1, "{told}");
    told
}

#[test]
fn divergence_is_its_definition() {
    let (base, tokenizer) = load("llama32-tiny-tied");
    let (model, _) = load("llama3-tiny-sharded");
    assert_eq!(base.config().vocab, model.config().vocab);
    let text = std::fs::read_to_string(fixture("../../src/eval/divergence.rs")).unwrap();
    let tokens = tokenizer.encode(&text, true).unwrap();
    let protocol = Protocol { context: 33, chunks: Some(2), bos: Some(tokens[0]) };
    let found = block_on(divergence(&base, &model, &tokens, protocol, |_, _, _| true)).unwrap();

    let (mut kl, mut same, mut nll) = (vec![], 0, [0.0, 0.0]);
    for chunk in tokens.chunks(33).take(2) {
        let mut chunk = chunk.to_vec();
        chunk[0] = tokens[0];
        let (p, q) = (ln_probabilities(&base, &chunk), ln_probabilities(&model, &chunk));
        for at in 16..32 {
            let (p, q, next) = (&p[at], &q[at], chunk[at + 1] as usize);
            kl.push(p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>());
            let top = |l: &[f64]| (0..l.len()).max_by(|a, b| l[*a].total_cmp(&l[*b])).unwrap();
            same += usize::from(top(p) == top(q));
            nll[0] -= p[next];
            nll[1] -= q[next];
        }
    }
    let n = kl.len() as f64;
    assert_eq!(found.kl.count(), kl.len());
    let mean = kl.iter().sum::<f64>() / n;
    assert!(mean > 0.1, "the two models differ: {mean}");
    assert!(close(found.kl.value(), mean, 1e-4), "{} {mean}", found.kl.value());
    let spread = kl.iter().map(|k| (k - mean).powi(2)).sum::<f64>() / (n - 1.0);
    assert!(close(found.kl.error(), (spread / n).sqrt(), 1e-4));
    assert_eq!(found.agreement.value(), same as f64 / n);
    assert!(close(found.base.perplexity(), (nll[0] / n).exp(), 1e-4));
    assert!(close(found.model.perplexity(), (nll[1] / n).exp(), 1e-4));
    assert!(close(found.ratio(), ((nll[1] - nll[0]) / n).exp(), 1e-4));
    kl.sort_by(f64::total_cmp);
    let [median, largest] = found.quantiles([0.5, 1.0]);
    assert!(close(median, (kl[15] + kl[16]) / 2.0, 1e-4) && close(largest, kl[31], 1e-4));
    let alone = block_on(perplexity(&model, &tokens, protocol, |_, _, _| true)).unwrap();
    assert_eq!(alone, found.model);
    let itself = block_on(divergence(&base, &base, &tokens, protocol, |_, _, _| true)).unwrap();
    assert_eq!((itself.kl.value(), itself.agreement.value(), itself.ratio()), (0.0, 1.0, 1.0));
}

#[test]
fn divergence_wants_one_vocabulary() {
    let (base, _) = load("llama32-tiny-tied");
    let (model, _) = load("qwen3-tiny");
    let protocol = Protocol { context: 8, chunks: None, bos: None };
    let error =
        block_on(divergence(&base, &model, &[1; 32], protocol, |_, _, _| true)).unwrap_err().to_string();
    assert!(error.contains("512") && error.contains("520") && error.contains("vocabulary"), "{error}");
}

/// Each fixture question of a task as the harness asks it, written out: contexts, continuations, the answer.
fn written_out(task: Task) -> Vec<(Vec<(String, String)>, usize)> {
    let of = |prompt: &str, answers: &[&str], answer| {
        let pair = |answer: &&str| (prompt.to_owned(), format!(" {answer}"));
        (answers.iter().map(pair).collect(), answer)
    };
    let gap = |contexts: [&str; 2], rest: &str, answer| {
        (contexts.map(|context| (context.to_owned(), rest.to_owned())).to_vec(), answer)
    };
    match task {
        Task::ArcEasy => vec![
            of(
                "Question: Which of these does a plant take from the air?\nAnswer:",
                &["carbon dioxide", "salt", "sand", "iron"],
                0,
            ),
            of(
                "Question: A stone falls into a pond. What moves outward over the water?\nAnswer:",
                &["a shadow", "a wave", "a root"],
                1,
            ),
            of(
                "Question: What keeps the Moon near the Earth?\nAnswer:",
                &["wind", "light", "sound", "gravity"],
                3,
            ),
        ],
        Task::ArcChallenge => vec![
            of(
                "Question: A farmer waters one of two equal fields. What does the dry field serve as?\nAnswer:",
                &["the control", "the result", "the error", "the tool"],
                0,
            ),
            of(
                "Question: Ice floats on water because ice is\nAnswer:",
                &[
                    "colder than the air",
                    "less dense than the water",
                    "more dense than the water",
                    "made of salt",
                    "wet",
                ],
                1,
            ),
        ],
        Task::HellaSwag => vec![
            of(
                "Mending a net: A woman sits on a pier with a torn net. She takes a needle and",
                &[
                    "pulls a thread through the hole.",
                    "eats the pier with a spoon.",
                    "flies over the sea and sings to the net.",
                    "is torn.",
                ],
                0,
            ),
            of(
                "Home and Garden: How to store apples. Choose whole apples. Bruised ones rot and spoil the rest. The crate",
                &[
                    " should sing.",
                    "is a kind of apple that walks.",
                    "should stand in a cool, dry room.. Look at them each week.",
                    "was born in a small village — far away.",
                ],
                2,
            ),
        ],
        Task::Piqa => vec![
            of(
                "Question: To open a jar whose lid is stuck,\nAnswer:",
                &[
                    "hold the lid under hot water for a minute",
                    "hold the lid under a photograph of water for a minute",
                ],
                0,
            ),
            of(
                "Question: Keep a door from slamming\nAnswer:",
                &["paint the key blue", "put a wedge under it"],
                1,
            ),
            of("Question: Écrire sur du verre\nAnswer:", &["use a felt pen", "use a wet sponge"], 0),
        ],
        Task::WinoGrande => vec![
            gap(
                [
                    "The ladder did not reach the roof because the ladder",
                    "The ladder did not reach the roof because the roof",
                ],
                " was too short.",
                0,
            ),
            gap(
                [
                    "The ladder did not reach the roof because the ladder",
                    "The ladder did not reach the roof because the roof",
                ],
                " was too high.",
                1,
            ),
            gap(["Anna", "Maria"], " thanked Maria, for the book was just what she wanted.", 0),
        ],
    }
}

fn data(task: Task) -> PathBuf {
    fixture(&format!("choices/{task}.jsonl"))
}

#[test]
fn choices_are_likelihoods_token_by_token() {
    // A delta net cannot go back to a shared beginning, attention can.
    for name in ["llama32-tiny-tied", "qwen35-tiny"] {
        let (model, tokenizer) = load(name);
        for task in Task::ALL {
            let text = std::fs::read_to_string(data(task)).unwrap();
            let labels = std::fs::read_to_string(fixture("choices/piqa-labels.lst")).unwrap();
            let questions = task.questions("file", &text, (task == Task::Piqa).then_some(&labels)).unwrap();
            let found = block_on(choices(&model, &tokenizer, &questions, false, |_, _| true)).unwrap();
            let expected = written_out(task);
            assert_eq!(found.likelihoods.len(), expected.len());
            let (mut acc, mut acc_norm) = (0, 0);
            for ((pairs, answer), found) in expected.iter().zip(&found.likelihoods) {
                let scored = pairs.iter().map(|(context, continuation)| {
                    let tokens = tokenizer.encode(&format!("{context}{continuation}"), false).unwrap();
                    let start = tokenizer.encode(context, false).unwrap().len();
                    let all = ln_probabilities(&model, &tokens);
                    (start..tokens.len()).map(|at| all[at - 1][tokens[at] as usize]).sum::<f64>()
                });
                let scored: Vec<f64> = scored.collect();
                for (found, expected) in found.iter().zip(&scored) {
                    assert!(close(*found, *expected, 1e-4), "{name} {task}: {found} {expected}");
                }
                let best =
                    |scores: Vec<f64>| (0..scores.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
                acc += usize::from(best(scored.clone()) == Some(*answer));
                let length = |(_, continuation): &(String, String)| (continuation.chars().count() - 1) as f64;
                let norm = scored.iter().zip(pairs).map(|(score, pair)| score / length(pair)).collect();
                acc_norm += usize::from(best(norm) == Some(*answer));
            }
            let n = expected.len() as f64;
            assert!(close(found.acc.value(), acc as f64 / n, 1e-9), "{name} {task}");
            if task == Task::WinoGrande {
                assert_eq!(found.acc_norm.count(), 0);
            } else {
                assert!(close(found.acc_norm.value(), acc_norm as f64 / n, 1e-9), "{name} {task}");
            }
        }
    }
}

#[test]
fn choices_of_five_tasks_in_one_run() {
    let mut args = vec!["choices".to_owned(), "tests/fixtures/llama32-tiny-tied".into(), "--json".into()];
    for task in Task::ALL {
        args.extend(["--task".into(), task.to_string(), "--data".into(), data(task).display().to_string()]);
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = json(&args);
    let acc = |task: Task| result["tasks"][task.name()]["acc"].as_f64().unwrap();
    let mean = Task::ALL.into_iter().map(acc).sum::<f64>() / 5.0;
    assert!(close(result["average"]["acc"].as_f64().unwrap(), mean, 1e-9));
    assert!(
        result["tasks"]["piqa"]["acc_norm"].is_number()
            && result["tasks"]["winogrande"]["acc_norm"].is_null()
    );
    let p: f64 = acc(Task::Piqa);
    let error = (p * (1.0 - p) / 2.0).sqrt();
    assert!(close(result["tasks"]["piqa"]["acc_error"].as_f64().unwrap(), error, 1e-9), "{result}");
    let bos = json(&[&args[..], &["--bos"]].concat());
    assert_eq!(bos["bos"], true);
}

#[test]
fn mistakes_are_one_line() {
    let tiny = "tests/fixtures/llama32-tiny-tied";
    let piqa = data(Task::Piqa).display().to_string();
    assert!(error(&["choices", tiny, "--task", "piqa", "--data", "no.jsonl"]).contains("no.jsonl"));
    assert!(
        error(&["choices", tiny, "--task", "winogrande", "--data", &piqa]).contains("piqa.jsonl, line 1")
    );
    let two = error(&["choices", tiny, "--task", "piqa", "--data", &piqa, "--data", &piqa]);
    assert!(two.contains("--data"), "{two}");
    let text = "src/eval/divergence.rs";
    let other =
        error(&["divergence", tiny, "--base", "tests/fixtures/qwen3-tiny", "--text", text, "--ctx", "16"]);
    assert!(other.contains("vocabulary"), "{other}");
    assert!(error(&["divergence", tiny, "--base", tiny, "--text", text, "--ctx", "2"]).contains("--ctx"));
    assert!(
        error(&["divergence", tiny, "--base", tiny, "--text", "Cargo.toml", "--ctx", "9999"])
            .contains("tokens")
    );
}

#[test]
fn a_context_beyond_the_trained_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text");
    std::fs::write(&text, "licensee may copy pages of it. ".repeat(900)).unwrap();
    let told = |ctx: &str| {
        let path = text.to_str().unwrap();
        let args = ["perplexity", "tests/fixtures/llama32-tiny-tied", "--text", path, "--chunks", "1"];
        let output = fasq_eval(&[&args[..], &["--device", "cpu", "--ctx", ctx]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stderr).unwrap()
    };
    let beyond = told("2100");
    let warnings: Vec<&str> = beyond.lines().filter(|line| line.contains("warning")).collect();
    assert!(matches!(warnings[..], [line] if line.contains("2100") && line.contains("2048")), "{beyond}");
    assert!(!told("1024").contains("warning"));
}

#[test]
fn divergence_from_itself_is_nothing() {
    let tiny = "tests/fixtures/llama32-tiny-tied";
    let result = json(&[
        "divergence",
        tiny,
        "--base",
        tiny,
        "--text",
        "src/eval/divergence.rs",
        "--ctx",
        "16",
        "--chunks",
        "3",
        "--json",
    ]);
    assert_eq!((result["kl_mean"].as_f64(), result["top1_agreement"].as_f64()), (Some(0.0), Some(1.0)));
    assert_eq!((result["chunks"].as_u64(), result["tokens_scored"].as_u64()), (Some(3), Some(3 * 7)));
}
