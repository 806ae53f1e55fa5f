//! Any size on demand: the solver on real checkpoints, and the programs around it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use fasq::backend::cpu::Cpu;
use fasq::checkpoint::Checkpoint;
use fasq::config::ModelConfig;
use fasq::format::Reader;
use fasq::model::arch::{self, Role};
use fasq::model::{Model, Source};
use fasq::quantize::text::{self, TextSize};
use fasq::quantize::{Activations, Fitted, Fitter, Plan, Rules, Sensitivities, Size};
use fasq::tensor::Stored;
use pollster::block_on;
use serde_json::Value;

const NAME: &str = "llama32-tiny-tied";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn fit(name: &str, rules: Rules, uniform: bool, sizes: &[Size]) -> fasq::Result<Vec<Fitted>> {
    let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
    let plan = Plan::new(&checkpoint, &rules).unwrap();
    Fitter::new(&checkpoint, &plan, &Sensitivities::typical(&plan), uniform)?.fit(sizes)
}

fn fasq(program: &str, args: &[&str]) -> Output {
    let program = match program {
        "fasq-quantize" => env!("CARGO_BIN_EXE_fasq-quantize"),
        _ => env!("CARGO_BIN_EXE_fasq-eval"),
    };
    Command::new(program).current_dir(fixture("")).env_remove("RUST_LOG").args(args).output().unwrap()
}

/// The standard output of a run that succeeds.
fn told(program: &str, args: &[&str]) -> String {
    let output = fasq(program, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The error line of a run that fails.
fn refused(program: &str, args: &[&str]) -> String {
    let output = fasq(program, args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    text
}

#[test]
fn files_meet_their_size() {
    for name in [NAME, "llama3-tiny-sharded", "qwen35-tiny"] {
        let sizes: Vec<Size> = [30.0, 35.0, 40.0, 50.0, 70.0].map(Size::Percent).to_vec();
        let fitted = fit(name, Rules::universal(), false, &sizes).unwrap();
        let mut last = f64::INFINITY;
        for (fitted, size) in fitted.iter().zip(sizes) {
            let (len, most) = (fitted.plan.layout.file_len(), size.bytes(&fitted.plan));
            // The tables of these tiny models weigh as much as a matrix: of a real one the rest is a few kilobytes.
            assert!(len <= most && len as f64 > 0.95 * most as f64, "{name}, {size}: {len} of {most}");
            assert!(fitted.loss < last, "{name}, {size}: {} after {last}", fitted.loss);
            last = fitted.loss;
        }
    }
}

/// A tokenizer.json of `entries` tokens: to be compressed, never used.
fn large_tokenizer(entries: u64) -> String {
    let word = |n: u64| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let vocab: serde_json::Map<String, Value> = (0..entries).map(|n| (word(n), n.into())).collect();
    serde_json::json!({ "model": { "vocab": vocab } }).to_string()
}

#[test]
fn tokenizers_are_compressed_once() {
    let folder = hollow();
    std::fs::write(folder.path().join("tokenizer.json"), large_tokenizer(200_000)).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let start = Instant::now();
    let plan = Plan::new(&checkpoint, &Rules::universal()).unwrap();
    let once = start.elapsed();
    let sensitivities = Sensitivities::typical(&plan);
    let fitter = Fitter::new(&checkpoint, &plan, &sensitivities, false).unwrap();
    let size = |fitted: &Fitted| fitted.plan.layout.file_len();
    let start = Instant::now();
    let fitted = fitter.fit(&[20.0, 25.0, 30.0, 35.0, 40.0, 45.0, 50.0].map(Size::Percent)).unwrap();
    let all = start.elapsed();
    assert!(fitted.windows(2).all(|two| size(&two[0]) < size(&two[1])));
    // Anew for each size, it took twenty times as long as once.
    assert!(all < 8 * once, "{all:?} for seven sizes, {once:?} for one tokenizer");
    let alike = Plan::new(&checkpoint, &fitted[0].plan.rules).unwrap();
    assert_eq!(alike.layout.file_len(), size(&fitted[0]));
}

/// A folder with the tensors of a Llama of 0.3 G weights, all zeros, in a file that has no blocks on the disk.
fn hollow() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 32000
    });
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let parsed = ModelConfig::parse(&config.to_string(), None).unwrap();
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for tensor in arch::tensors(&parsed, &|name| name.starts_with("model.") || name == "lm_head.weight") {
        let start = end;
        end += 2 * tensor.shape.iter().product::<usize>();
        let info =
            serde_json::json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end] });
        header.insert(tensor.name, info);
    }
    let header = Value::Object(header).to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len((bytes.len() + end) as u64).unwrap();
    folder
}

#[test]
fn a_large_model_meets_its_size_to_three_thousandths() {
    let folder = hollow();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let plan = Plan::new(&checkpoint, &Rules::universal()).unwrap();
    let fitter = Fitter::new(&checkpoint, &plan, &Sensitivities::typical(&plan), false).unwrap();
    let sizes = [12.0, 20.0, 27.3, 31.0, 42.0, 50.0].map(Size::Percent);
    for (fitted, size) in fitter.fit(&sizes).unwrap().iter().zip(sizes) {
        let (len, most) = (fitted.plan.layout.file_len(), size.bytes(&fitted.plan));
        assert!(len <= most && len as f64 >= 0.997 * most as f64, "{size}: {len} of {most}");
    }
}

#[test]
fn what_is_decided_stays() {
    let tensors = vec![("*layers.1.mlp.*".to_owned(), "2-16".parse().unwrap())];
    let rules = Rules { tensors, ..Rules::universal() };
    let [fitted] = &fit(NAME, rules, false, &[Size::Percent(45.0)]).unwrap()[..] else { panic!("one size") };
    for item in fitted.plan.items.iter().filter(|item| item.name.contains("layers.1.mlp")) {
        assert_eq!(item.spec(), "2-16@universal", "{}", item.name);
    }
    let specs: std::collections::HashSet<String> =
        fitted.plan.items.iter().filter(|item| item.role == Role::Linear).map(|item| item.spec()).collect();
    assert!(specs.len() > 2, "each matrix its own: {specs:?}");
}

#[test]
fn uniform_is_one_spec() {
    let fitted = fit(NAME, Rules::paper(), true, &[Size::Percent(97.0)]).unwrap();
    let specs: std::collections::HashSet<String> =
        fitted[0].plan.items.iter().filter(|i| matches!(i.stored, Stored::Pq(_))).map(|i| i.spec()).collect();
    assert_eq!(specs.len(), 1, "{specs:?}");
    assert!(specs.iter().all(|spec| spec.ends_with("@subspace")), "{specs:?}");
    let embedding = fitted[0].plan.items.iter().find(|item| item.role == Role::Embed).unwrap();
    assert!(matches!(embedding.stored, Stored::Dense(_)), "the paper leaves it");
}

#[test]
fn a_size_that_cannot_be_names_the_least() {
    let error = fit(NAME, Rules::universal(), false, &[Size::Bytes(1000)]).unwrap_err().to_string();
    assert!(error.contains("smallest"), "{error}");
    let least: f64 = error.split("at least ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    let least = Size::Bytes((least * 1e6) as u64 + 10_000);
    assert!(fit(NAME, Rules::universal(), false, &[least]).is_ok());
}

#[test]
fn measured_sensitivities_tell_matrices_apart() {
    let source = Source::open(&fixture(NAME)).unwrap();
    let Source::Checkpoint(checkpoint) = &source else { panic!("a folder") };
    let model = Model::load(Cpu, &source).unwrap();
    let stop = AtomicBool::new(false);
    let size = TextSize { sequences: 6, length: 48, seed: 1 };
    let text = block_on(text::write(&model, size, &stop, &|_| ())).unwrap();
    let plan = Plan::new(checkpoint, &Rules::universal()).unwrap();
    let measure = || {
        let mut inputs = Activations::new(&model, &text[2..], &stop).unwrap();
        let measured = Sensitivities::measure(
            &model,
            checkpoint,
            &plan,
            &text[..2],
            Some(&mut inputs),
            &stop,
            &|_, _| (),
        );
        measured.unwrap()
    };
    let measured = measure();
    assert_eq!(measured, measure());
    let matrices: Vec<_> = plan.items.iter().filter(|item| item.role != Role::Keep).collect();
    assert!(matrices.iter().all(|item| measured.of(item).unwrap() > 0.0));
    let of =
        |name: &str| measured.of(matrices.iter().find(|item| item.name.contains(name)).unwrap()).unwrap();
    assert!(of("embed_tokens") > 3.0 * of("layers.0.self_attn.k_proj"), "{}", measured.to_json());
}

#[test]
fn the_program_meets_a_size_and_reproduces_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (sensitivities, written) = (path("s.json"), path("written.json"));
    let common =
        [NAME, "--size", "330kB", "--sequences", "24", "--length", "32", "--quiet", "--backend", "cpu"];
    let with = |out: &str, more: &[&str]| {
        let out = path(out);
        told("fasq-quantize", &[&common[..], &["-o", &out], more].concat());
        std::fs::read(out).unwrap()
    };
    let own = ["--sensitivity", "self", "--save-sensitivity", &sensitivities, "--written", &written];
    let first = with("first.fasq", &own);
    assert!(first.len() <= 330_000 && first.len() > 315_000, "{} bytes", first.len());
    assert!(Reader::from_bytes(first.clone()).is_ok());
    assert!(first == with("again.fasq", &["--sensitivity", "self"]), "the same seed, the same bytes");
    let known = ["--sensitivity", &sensitivities, "--written", &written];
    assert!(first == with("known.fasq", &known), "what was kept gives the same bytes");
    let plan = |more: &[&str]| {
        told("fasq-quantize", &[&[NAME, "--size", "330kB", "--plan-only", "--json"], more].concat())
    };
    assert_ne!(plan(&[]), plan(&["--sensitivity", &sensitivities]), "sensitivities matter");

    let other = ["--seed", "1", "--written", &written, "-o", &path("x.fasq")];
    let text = refused("fasq-quantize", &[&common[..], &other].concat());
    assert!(text.contains("written.json") && text.contains("seed 1"), "{text}");
}

#[test]
fn too_few_sequences_are_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.fasq").display().to_string();
    let few =
        [NAME, "-o", &out, "--size", "330kB", "--sensitivity", "self", "--sequences", "8", "--length", "32"];
    let text = refused("fasq-quantize", &few);
    assert!(text.contains("sequences of the feedback text: expected over 8"), "{text}");
}

#[test]
fn seconds_are_elapsed_seconds() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.fasq").display().to_string();
    let start = Instant::now();
    let args = [NAME, "-o", &out, "--sequences", "48", "--length", "64", "--json", "--backend", "cpu"];
    let report: Value = serde_json::from_str(&told("fasq-quantize", &args)).unwrap();
    let elapsed = start.elapsed().as_secs_f64();
    let seconds = |key: &str| report[key].as_f64().unwrap();
    // The model writes text before anything is quantized.
    assert!(seconds("seconds") > seconds("quantizing_seconds"), "{report}");
    assert!((0.5 * elapsed..=elapsed).contains(&seconds("seconds")), "{elapsed} s: {report}");
}

#[test]
fn sensitivities_of_another_model_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other.json").display().to_string();
    std::fs::write(&file, r#"{"model.embed_tokens.weight": 1.0}"#).unwrap();
    let text = refused("fasq-quantize", &[NAME, "--size", "50%", "--sensitivity", &file, "--plan-only"]);
    assert!(text.contains("other.json") && text.contains("model.layers.0."), "{text}");
}

#[test]
fn tables_of_sizes_need_no_file() {
    let text = told("fasq-quantize", &[NAME, "--sizes", "35%,400kB"]);
    assert_eq!(text.lines().count(), 3, "{text}");
    let json: Value =
        serde_json::from_str(&told("fasq-quantize", &[NAME, "--sizes", "60%", "--json"])).unwrap();
    assert!(json[0]["bytes"].as_u64().unwrap() <= json[0]["fp16_bytes"].as_u64().unwrap() * 6 / 10);
    assert!(json[0]["tensors"].as_array().unwrap().len() > 10);
    assert!(told("fasq-quantize", &[NAME, "--bpw", "9", "--plan-only"]).contains("estimated KL"));
    for (args, expected) in [
        (&[NAME, "--size", "5 apples", "--plan-only"][..], "apples"),
        (&[NAME, "--size", "1kB", "--plan-only"], "smallest"),
        (&[NAME, "--bpw", "99", "--plan-only"], "0.1 to 32"),
        (&[NAME, "--size", "50%", "--bpw", "4", "--plan-only"], "cannot be used with"),
        (&[NAME, "--size", "50%", "--pq", "2-256", "--plan-only"], "cannot be used with"),
        (&[NAME, "--size", "50%", "--sensitivity", "absent.json", "--plan-only"], "absent.json"),
        (&[NAME, "--size", "50%", "--sensitivity", "config.json", "--plan-only"], "config.json"),
        (&[NAME, "--uniform", "--plan-only"], "--size"),
        (&[NAME, "--sensitivity", "self", "--plan-only"], "--size"),
        (&[NAME, "--sizes", "50%", "-o", "x.fasq"], "cannot be used with"),
        (&[NAME], "--out"),
    ] {
        let text = refused("fasq-quantize", args);
        assert!(text.contains(expected), "{args:?}: {text}");
    }
}

#[test]
fn a_frontier_is_measured_once_and_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let text: String = (0..200).map(|n| format!("the {n}th licensee may copy {n} pages of it. ")).collect();
    std::fs::write(path("text"), text).unwrap();
    let peers = path("peers.csv");
    std::fs::write(&peers, "series,name,bytes,kl,perplexity\nothers,Q4,400000,0.02,500\n").unwrap();
    let (dir, text) = (path("dir"), path("text"));
    let common = [
        "frontier",
        NAME,
        "--dir",
        &dir,
        "--text",
        &text,
        "--ctx",
        "64",
        "--chunks",
        "4",
        "--backend",
        "cpu",
    ];
    let ways = ["--with", "--size 40% --feedback none", "--with", "--pq 2-256 --feedback none"];
    let run = || fasq("fasq-eval", &[&common[..], &ways, &["--peers", &peers]].concat());
    let first = run();
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let table = std::fs::read_to_string(path("dir/frontier.csv")).unwrap();
    assert_eq!(table.lines().count(), 3, "{table}");
    let again = String::from_utf8(run().stderr).unwrap();
    assert_eq!(again.matches("(known)").count(), 2, "{again}");
    assert_eq!(std::fs::read_to_string(path("dir/frontier.csv")).unwrap(), table);
    for theme in ["light", "dark"] {
        let svg = std::fs::read_to_string(path(&format!("dir/frontier-{theme}.svg"))).unwrap();
        for word in ["FASQ", "others", "Q4", "perplexity", NAME] {
            assert!(svg.contains(word), "{theme}: no {word}");
        }
    }

    std::fs::write(&peers, "series,name,bytes,kl,perplexity\nothers,Q4,many,0.02,500\n").unwrap();
    let text = refused("fasq-eval", &[&common[..], &["--peers", &peers]].concat());
    assert!(text.contains("peers.csv") && text.contains("line: 2"), "{text}");
    let text = refused("fasq-eval", &[&common[..], &["--with", "--pq 9-9"]].concat());
    assert!(text.contains("--pq 9-9"), "{text}");
}
