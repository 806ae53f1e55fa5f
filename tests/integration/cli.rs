//! fasq-run as a user meets it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// fasq-run with arguments, an empty stdin, and pipes for stdout and stderr.
fn fasq_run(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fasq-run"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("RUST_LOG");
    command
}

/// fasq-run on a fixture.
fn run_fixture(name: &str, args: &[&str]) -> Command {
    let mut command = fasq_run(&[]);
    command.arg(fixture(name)).args(args);
    command
}

fn with_stdin(mut command: Command, text: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text).unwrap();
    child.wait_with_output().unwrap()
}

/// The stdout of a run that succeeds.
fn text(mut command: Command) -> String {
    succeeded(command.output().unwrap())
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", stderr(&output));
    String::from_utf8(output.stdout).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The one line `error: ...` of a run that fails with exit code 2 and prints nothing else.
fn error(mut command: Command) -> String {
    failed(command.output().unwrap())
}

fn failed(output: Output) -> String {
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(output.stdout.is_empty());
    let lines: Vec<_> = error.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(lines.len(), 1, "{error}");
    assert!(error.lines().last() == Some(lines[0]) && !error.contains("panicked"), "{error}");
    lines[0].to_string()
}

/// A fixture that never ends a text by itself: its end token is a padding row, and its context is long.
fn endless() -> TempDir {
    let folder = TempDir::new().unwrap();
    for file in ["model.safetensors", "tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(fixture("qwen3-tiny").join(file), folder.path().join(file)).unwrap();
    }
    let config = std::fs::read_to_string(fixture("qwen3-tiny").join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["eos_token_id"] = 519.into();
    config["max_position_embeddings"] = 60_000.into();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// A run on [`endless`] of which the first bytes have come.
fn started(folder: &TempDir) -> Child {
    let mut command = fasq_run(&["-p", "a", "-n", "59000", "--ctx", "60000", "--seed", "1"]);
    let mut child = command.arg(folder.path()).spawn().unwrap();
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut [0; 16]).unwrap();
    child
}

#[test]
fn help_and_version() {
    let help = text(fasq_run(&["--help"]));
    for flag in
        ["--prompt", "--chat", "--backend", "--tokens", "--ctx", "--top-k", "--seed", "--stop", "--json"]
    {
        assert!(help.contains(flag), "{flag}");
    }
    assert_eq!(text(fasq_run(&["--version"])), concat!("fasq-run ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn completions_and_man_pages() {
    let folder = TempDir::new().unwrap();
    for (program, option) in [
        (env!("CARGO_BIN_EXE_fasq-run"), "--chat"),
        (env!("CARGO_BIN_EXE_fasq-quantize"), "--size"),
        (env!("CARGO_BIN_EXE_fasq-eval"), "--ctx"),
        (env!("CARGO_BIN_EXE_fasq-bench"), "--compare"),
    ] {
        for shell in ["bash", "zsh", "fish"] {
            let script = Command::new(program).args(["--completions", shell]).output().unwrap();
            assert!(
                succeeded(script).contains(option.trim_start_matches('-')),
                "{program}, {shell}: {option}"
            );
        }
        let pages =
            Command::new(program).arg("--man-pages").arg(folder.path().join("man1")).output().unwrap();
        assert_eq!(succeeded(pages), "");
    }
    let page = |name: &str| std::fs::read_to_string(folder.path().join("man1").join(name)).unwrap();
    assert!(
        page("fasq-run.1").contains("\\-\\-chat") && page("fasq-eval-perplexity.1").contains("\\-\\-ctx")
    );
    for args in [&["--completions", "cmd.com"][..], &["--completions", "bash", "--chat"]] {
        assert_eq!(fasq_run(args).output().unwrap().status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn usage_errors() {
    for args in [
        &["--tempreature", "1"][..],
        &["--backend", "tpu"],
        &["-n", "many"],
        &["--greedy", "--temperature", "1"],
        &["--think", "--no-think"],
        &["--template-var", "enable_thinking"],
    ] {
        let output = fasq_run(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).starts_with("error: ") && output.stdout.is_empty());
    }
    let output = fasq_run(&["--tempreature", "1"]).output().unwrap();
    assert!(stderr(&output).contains("--temperature"), "a typo is told from its neighbour");
}

#[test]
fn mistakes_are_one_line() {
    let empty = TempDir::new().unwrap();
    let error_of = |args: &[&str]| error(fasq_run(args));
    assert!(error_of(&["no/such/model.fasq", "-p", "a"]).contains("no/such/model.fasq"));
    assert!(error_of(&[empty.path().to_str().unwrap(), "-p", "a"]).contains("config.json"));
    let tied = fixture("llama32-tiny-tied");
    let tied = tied.to_str().unwrap();
    let long = "far too long for this context ".repeat(20);
    let found = error_of(&[tied, "--ctx", "16", "-q", "-p", &long]);
    assert!(found.starts_with("error: prompt: expected at most 16 tokens, the context, found "), "{found}");
    assert!(error_of(&[tied, "--ctx", "0", "-p", "a"]).contains("1 to 2048"));
    assert!(error_of(&[tied, "--ctx", "99999999999999", "-p", "a"]).contains("1 to 2048"));
    assert!(error_of(&[tied, "--temperature", "-1", "-p", "a"]).contains("temperature"));
    assert!(error_of(&[tied, "--top-p", "nan", "-p", "a"]).contains("top-p"));
    assert!(error_of(&[tied, "--threads", "0", "-p", "a"]).contains("--threads"));
    assert!(error_of(&[tied, "-q", "--stop", "", "-p", "a"]).contains("stop string"));
    assert!(error_of(&[tied, "--eos", "<|nobody|>", "-p", "a"]).contains("<|nobody|>"));
    assert!(error_of(&[tied, "--eos", "512", "-p", "a"]).contains("512"));
    let no_bytes = with_stdin(run_fixture("llama32-tiny-tied", &["-q"]), b"\xff\xfe");
    assert!(failed(no_bytes).contains("stdin"));
}

#[test]
fn a_token_named_by_hand_ends_the_text() {
    let run = |args: &[&str]| {
        text(run_fixture("llama32-tiny-tied", &[&["-p", "licence", "--greedy"], args].concat()))
    };
    let long = run(&["-n", "6"]);
    let ids: Vec<String> = (0..480).map(|id| id.to_string()).collect();
    let all: Vec<&str> = ids.iter().flat_map(|id| ["--eos", id]).collect();
    assert!(!long.is_empty() && run(&[&["-n", "6"][..], &all].concat()).is_empty());
}

#[test]
fn an_empty_prompt_needs_a_first_token() {
    let from_bos = text(run_fixture("llama32-tiny-tied", &["-p", "", "-n", "5", "--greedy"]));
    assert!(!from_bos.is_empty());
    let empty_stdin = text(run_fixture("llama32-tiny-tied", &["-n", "5", "--greedy"]));
    assert_eq!(empty_stdin, from_bos);
    assert!(error(run_fixture("qwen3-tiny", &["-p", "", "-q"])).contains("empty"));
}

#[test]
fn damaged_models_are_one_line() {
    let damage = |file: &str, bytes: &[u8]| {
        let folder = endless();
        std::fs::write(folder.path().join(file), bytes).unwrap();
        let mut command = fasq_run(&["-p", "a", "-n", "2"]);
        command.arg(folder.path());
        error(command)
    };
    assert!(damage("tokenizer.json", b"{").contains("tokenizer.json"));
    assert!(
        damage("generation_config.json", br#"{"temperature": "hot"}"#).contains("generation_config.json")
    );
    assert!(damage("config.json", b"{}").contains("config.json"));
    assert!(damage("model.safetensors", &[0xff; 64]).contains("model.safetensors"));
    let config = std::fs::read_to_string(fixture("qwen3-tiny").join("config.json")).unwrap();
    let smaller = config.replace("\"vocab_size\": 520", "\"vocab_size\": 484");
    assert_ne!(smaller, config);
    assert!(damage("config.json", smaller.as_bytes()).contains("vocabulary of 484, found id 484"));
}

#[test]
fn a_model_without_tokenizer_or_template() {
    let folder = endless();
    std::fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
    let mut command = fasq_run(&["--chat", "-p", "a"]);
    assert!(error(std::mem::replace(command.arg(folder.path()), fasq_run(&[]))).contains("base model"));
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let mut command = fasq_run(&["-p", "a"]);
    assert!(error(std::mem::replace(command.arg(folder.path()), fasq_run(&[]))).contains("tokenizer.json"));
}

#[test]
fn greedy_and_seeded_texts_repeat() {
    let with = |args: &[&str]| {
        text(run_fixture("llama32-tiny-tied", &[&["-p", "licensee may", "-n", "24"], args].concat()))
    };
    assert_eq!(with(&["--greedy"]), with(&["--temperature", "0", "--seed", "9"]));
    assert_eq!(with(&["--seed", "5"]), with(&["--seed", "5"]));
    assert_ne!(with(&["--seed", "5"]), with(&["--seed", "6"]));
    assert_eq!(with(&["--greedy"]), with(&["--greedy", "--threads", "1"]));
}

#[test]
fn greedy_texts_are_the_reference() {
    for name in ["llama32-tiny-tied", "qwen3-tiny", "qwen35-tiny"] {
        let prompts = std::fs::read_to_string(fixture(name).join("prompts.json")).unwrap();
        let prompts: Value = serde_json::from_str(&prompts).unwrap();
        let prompt = prompts["prompts"]["17"]["text"].as_str().unwrap();
        let from_flag = text(run_fixture(name, &["-p", prompt, "-n", "32", "--greedy"]));
        let from_stdin =
            with_stdin(run_fixture(name, &["-n", "32", "--greedy"]), format!("{prompt}\n").as_bytes());
        assert_eq!(succeeded(from_stdin), from_flag, "the last newline of stdin is dropped");
        let expected = reference_text(name);
        assert!(from_flag.starts_with(&expected), "{name}: {from_flag:?}, expected {expected:?}");
    }
}

/// The greedy continuation of prompt 17 as transformers writes it, without what an end token cuts off.
fn reference_text(name: &str) -> String {
    let bytes = std::fs::read(fixture(name).join("reference.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let greedy = tensors.tensor("greedy_17").unwrap();
    let ids: Vec<u32> =
        greedy.data().chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().unwrap()) as u32).collect();
    let json = std::fs::read_to_string(fixture(name).join("tokenizer.json")).unwrap();
    let config = fasq::checkpoint::Checkpoint::open(&fixture(name)).unwrap().config().clone();
    let end = ids.iter().position(|id| config.eos.contains(id)).unwrap_or(ids.len());
    let tokenizer = fasq::generate::Tokenizer::new(&json, config.vocab).unwrap();
    let text = tokenizer.decode(&ids[..end], true).unwrap();
    text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_string()
}

#[test]
fn json_lines() {
    let args = ["-p", "licensee may", "-n", "12", "--greedy"];
    let plain = text(run_fixture("llama32-tiny-tied", &args));
    let json = text(run_fixture("llama32-tiny-tied", &[&args[..], &["--json", "-q"]].concat()));
    let lines: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (stats, pieces) = lines.split_last().unwrap();
    let joined: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
    assert_eq!(joined, plain);
    assert_eq!(stats["stop"], "token limit");
    assert_eq!(stats["generated_tokens"], 12);
    for key in [
        "prompt_tokens",
        "prompt_tokens_per_second",
        "ms_per_token",
        "weight_bytes_per_second",
        "memory_bytes",
    ] {
        assert!(stats[key].as_f64().unwrap() > 0.0, "{key}");
    }
}

#[test]
fn stderr_tells_and_quiet_does_not() {
    let run = |args: &[&str]| {
        run_fixture("llama32-tiny-tied", &[&["-p", "a", "-n", "5", "--seed", "77"], args].concat())
            .output()
            .unwrap()
    };
    let loud = stderr(&run(&[]));
    for told in [
        "llama32-tiny-tied",
        "cpu",
        "(auto)",
        "seed 77",
        "prompt 2 tokens",
        "generated 5 tokens (token limit)",
        "ms/token",
        "memory",
    ] {
        assert!(loud.contains(told), "{told}: {loud}");
    }
    assert!(!stderr(&run(&["--backend", "cpu"])).contains("(auto)"));
    assert_eq!(stderr(&run(&["-q"])), "");
    // Neither do the drivers that are asked for a GPU, where nobody has logged in.
    let mut bare = run_fixture("llama32-tiny-tied", &["-p", "a", "-n", "5", "-q"]);
    assert_eq!(stderr(&bare.env_remove("XDG_RUNTIME_DIR").output().unwrap()), "");
}

#[test]
fn a_program_with_threads_keeps_its_environment() {
    // Tests run in threads, which may read the environment at any time.
    let variable = || std::env::var_os("XDG_RUNTIME_DIR");
    let before = variable();
    fasq::cli::main(|| Ok(()));
    assert_eq!(variable(), before);
}

#[test]
fn stop_strings_and_contexts_end_texts() {
    let with = |args: &[&str]| {
        run_fixture("llama32-tiny-tied", &[&["-p", "licensee may", "--greedy"], args].concat())
            .output()
            .unwrap()
    };
    let whole = succeeded(with(&["-n", "24"]));
    let (at, _) = whole.char_indices().nth(10).unwrap();
    let stop: String = whole[at..].chars().take(3).collect();
    let stopped = with(&["-n", "24", "--stop", "never seen", "--stop", &stop]);
    assert!(stderr(&stopped).contains("(stop string)"));
    assert_eq!(succeeded(stopped), whole[..whole.find(&stop).unwrap()]);
    let full = with(&["--ctx", "16"]);
    assert!(stderr(&full).contains("(context full)"), "{}", stderr(&full));
}

#[test]
fn a_chat_from_a_pipe_remembers() {
    let last = |stdin: &str, name: &str| {
        let command =
            run_fixture(name, &["--chat", "--system", "Be brief.", "-n", "6", "--greedy", "--json"]);
        let output = succeeded(with_stdin(command, stdin.as_bytes()));
        let mut answers: Vec<String> = vec![String::new()];
        for line in output.lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            match line["text"].as_str() {
                Some(piece) => answers.last_mut().unwrap().push_str(piece),
                None => answers.push(String::new()),
            }
        }
        answers.pop();
        answers
    };
    for name in ["llama32-tiny-tied", "qwen3-tiny", "qwen35-tiny"] {
        let answers = last("copyright\nnotice\n\n/reset\nnotice\n", name);
        assert_eq!(answers.len(), 3, "{name}");
        // After /reset the same question has no past: the answer is that of a new chat, whatever the cache held.
        assert_eq!(answers[2], last("notice\n", name)[0], "{name}");
        assert_eq!(answers[..2], last("copyright\nnotice\n", name), "{name}");
    }
}

#[test]
fn a_reader_may_leave() {
    let folder = endless();
    let mut child = started(&folder);
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let told = stderr(&output);
    assert!(!told.contains("error") && !told.contains("panicked"), "{told}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_the_statistics() {
    let folder = endless();
    let child = started(&folder);
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(130), "{told}");
    assert!(told.contains("(interrupted)") && told.contains("tok/s") && !told.contains("error"), "{told}");
}

#[test]
fn missing_backends_are_named() {
    let output = run_fixture("llama32-tiny-tied", &["--backend", "cuda", "-p", "a", "-n", "1", "-q"])
        .output()
        .unwrap();
    // Where there is a GPU, it runs.
    if !output.status.success() {
        assert!(failed(output).starts_with("error: backend cuda: "));
    }
}

#[cfg(all(feature = "wgpu", target_os = "linux"))]
#[test]
fn a_machine_without_adapters() {
    let mut command = run_fixture("qwen3-tiny", &["--backend", "wgpu", "-p", "a"]);
    command.env("VK_DRIVER_FILES", "/none").env("VK_ICD_FILENAMES", "/none");
    let error = error(command);
    assert!(error.contains("no GPU adapter found"), "{error}");
}
