//! Models by their names on the Hugging Face hub, against a hub on loopback.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::json;
use tempfile::TempDir;

use crate::hub_server::{COMMIT, Fault, HubServer, REPOSITORY, Request, sha256};

const SHARDED: &str = "llama3-tiny-sharded";
const SINGLE: &str = "llama32-tiny-tied";
const NAME: &str = "hf:org/model";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

/// A user with an empty cache, and a hub with a fixture's files.
struct User {
    hub: HubServer,
    home: TempDir,
}

impl User {
    fn of(name: &str) -> Self {
        Self { hub: HubServer::start(&fixture(name)), home: TempDir::new().unwrap() }
    }

    /// A program with arguments, in the user's environment and home folder.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let others =
            ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_TOKEN_PATH", "SSL_CERT_FILE", "RUST_LOG"];
        for variable in others {
            command.env_remove(variable);
        }
        for proxy in ["http_proxy", "https_proxy", "all_proxy"] {
            command.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", self.hub.endpoint());
        command.current_dir(self.home.path());
        command
    }

    /// fasq-run on a model of the hub, or of a path.
    fn run(&self, model: &str) -> Command {
        let args = [model, "-p", "licensee may", "-n", "4", "--greedy", "--device", "cpu"];
        self.command(env!("CARGO_BIN_EXE_fasq-run"), &args)
    }

    /// The one line of a run of [`NAME`] that fails.
    fn error(&self, model: &str) -> String {
        failed(self.run(model).output().unwrap())
    }

    fn cached(&self, path: &str) -> PathBuf {
        self.home.path().join("hub/models--org--model").join(path)
    }

    /// Where the start of a large file waits for the rest.
    fn partial(&self, file: &str) -> PathBuf {
        self.cached(&format!("blobs/{}.incomplete", sha256(&self.hub.content(file))))
    }
}

fn succeeded(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn failed(output: Output) -> String {
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    let error = told.lines().last().unwrap().to_owned();
    assert!(error.starts_with("error: ") && !told.contains("panicked"), "{told}");
    error
}

/// The requests for files whose names end so.
fn asked<'a>(requests: &'a [Request], end: &str) -> Vec<&'a Request> {
    requests.iter().filter(|request| request.path.ends_with(end)).collect()
}

#[test]
fn a_model_is_downloaded_once() {
    let user = User::of(SHARDED);
    let local = succeeded(user.run(fixture(SHARDED).to_str().unwrap()).output().unwrap());
    assert!(user.hub.requests().is_empty(), "a path never asks the network");

    let output = user.run(NAME).env("HF_TOKEN", "hf_secret").output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(succeeded(output), local);
    assert!(told.contains("hf:org/model: downloading 7 files, 1.38 MB"), "{told}");
    let requests = user.hub.requests();
    for unneeded in ["prompts.json", "reference.safetensors"] {
        assert!(asked(&requests, unneeded).is_empty(), "{unneeded}");
    }
    // The hub is told who asks; the host that it redirects to is not.
    for request in &requests {
        let at_hub = request.host.starts_with("localhost");
        assert_eq!(request.authorization.as_deref(), at_hub.then_some("Bearer hf_secret"), "{request:?}");
    }
    assert_eq!(requests.iter().filter(|request| request.path.starts_with("/large/")).count(), 8);

    // All is in the cache, in the layout of the hub's own clients.
    let link = std::fs::read_link(user.cached(&format!("snapshots/{COMMIT}/tokenizer.json"))).unwrap();
    let digest = sha256(&user.hub.content("tokenizer.json"));
    assert_eq!(link, Path::new("../../blobs").join(digest));
    assert_eq!(std::fs::read_to_string(user.cached("refs/main")).unwrap(), COMMIT);
    assert_eq!(succeeded(user.run(NAME).output().unwrap()), local);
    assert_eq!(succeeded(user.run(NAME).env("HF_HUB_OFFLINE", "1").output().unwrap()), local);
    let plan =
        user.command(env!("CARGO_BIN_EXE_fasq-quantize"), &[NAME, "--plan-only", "--feedback", "none"]);
    assert!(succeeded({ plan }.output().unwrap()).contains("2-256@universal"));
    let ids = ["logits", NAME, "--ids", "1,2,3", "--out", "logits.safetensors", "--device", "cpu"];
    let logits = user.command(env!("CARGO_BIN_EXE_fasq-eval"), &ids).output().unwrap();
    assert!(logits.status.success(), "{}", String::from_utf8_lossy(&logits.stderr));
    assert!(user.hub.requests().is_empty(), "what is cached needs no network");
}

/// As a folder that another client filled, which marks no file as absent.
#[test]
fn offline_the_cache_is_enough() {
    let user = User::of(SINGLE);
    let offline = |model: &str| user.run(model).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let error = failed(offline(NAME));
    assert!(error.contains("hf:org/model: ") && error.contains("HF_HUB_OFFLINE"), "{error}");
    let snapshot = user.cached(&format!("snapshots/{COMMIT}"));
    std::fs::create_dir_all(&snapshot).unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        std::fs::write(snapshot.join(file), user.hub.content(file)).unwrap();
    }
    let by_commit = format!("{NAME}@{COMMIT}");
    succeeded(offline(&by_commit));
    assert!(user.hub.requests().is_empty());
    // With the network, what else the model has comes too.
    succeeded(user.run(&by_commit).output().unwrap());
    let requests = user.hub.requests();
    assert!(
        asked(&requests, "model.safetensors").is_empty()
            && !asked(&requests, "tokenizer_config.json").is_empty()
    );
}

#[test]
fn a_broken_connection_is_resumed() {
    let user = User::of(SINGLE);
    user.hub.fail(Fault::BreakOnce("model.safetensors"));
    succeeded(user.run(NAME).output().unwrap());
    let half = user.hub.content("model.safetensors").len() / 2;
    let ranges: Vec<_> = asked(&user.hub.requests(), "/large/model.safetensors")
        .iter()
        .map(|request| request.range.clone())
        .collect();
    assert_eq!(ranges, [None, Some(format!("bytes={half}-"))]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_came() {
    let user = User::of(SINGLE);
    let (told, half_way) = mpsc::channel();
    user.hub.fail(Fault::SlowOnce("model.safetensors", told));
    let child = user.run(NAME).spawn().unwrap();
    half_way.recv_timeout(Duration::from_secs(60)).expect("no download began");
    // What the hub has sent is not there yet on a busy machine.
    let partial = user.partial("model.safetensors");
    let began = Instant::now();
    while !std::fs::metadata(&partial).is_ok_and(|partial| partial.len() > 0) {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing of the download is kept");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("run again to continue"), "{stderr}");
    let came = std::fs::metadata(partial).unwrap().len();
    user.hub.requests();
    succeeded(user.run(NAME).output().unwrap());
    let requests = user.hub.requests();
    let [again] = asked(&requests, "/large/model.safetensors")[..] else { panic!("{requests:?}") };
    assert_eq!(again.range, Some(format!("bytes={came}-")));
    assert!(asked(&requests, "config.json").is_empty(), "whole files are not downloaded again");
}

#[test]
fn a_hub_without_ranges_sends_the_whole_file() {
    let user = User::of(SINGLE);
    user.hub.fail(Fault::IgnoreRanges);
    let partial = user.partial("model.safetensors");
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, [7; 1000]).unwrap();
    succeeded(user.run(NAME).output().unwrap());
    assert!(!partial.exists());
}

#[test]
fn damaged_files_are_named_and_not_kept() {
    for file in ["model.safetensors", "tokenizer_config.json"] {
        let user = User::of(SINGLE);
        user.hub.fail(Fault::Damage(file));
        let error = user.error(NAME);
        assert!(error.contains(&format!("hf:org/model: {file}: expected checksum")), "{error}");
        assert!(!user.cached(&format!("snapshots/{COMMIT}/{file}")).exists() && !user.partial(file).exists());
        user.hub.fail(Fault::None);
        succeeded(user.run(NAME).output().unwrap());
    }
    // So is what was damaged before it was resumed.
    let user = User::of(SINGLE);
    let partial = user.partial("model.safetensors");
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::fs::write(&partial, [7; 1000]).unwrap();
    assert!(user.error(NAME).contains("checksum"));
    assert!(!partial.exists());
}

#[test]
fn refusals_say_what_to_do() {
    let user = User::of(SINGLE);
    for (status, code, expected) in [
        (403, "GatedRepo", "accept the terms at http://localhost:"),
        (401, "GatedRepo", "accept the terms at http://localhost:"),
        (401, "", "no such repository, or a private one"),
        (404, "RepoNotFound", "no such repository, or a private one"),
        (404, "RevisionNotFound", "no such revision"),
        (403, "", "HF_TOKEN"),
        (429, "", "too many requests"),
        (500, "", "500"),
    ] {
        user.hub.fail(Fault::Refuse(status, code));
        let error = user.error(NAME);
        assert!(
            error.starts_with("error: hf:org/model: ") && error.contains(expected),
            "{status} {code}: {error}"
        );
    }
    user.hub.fail(Fault::Refuse(401, ""));
    std::fs::write(user.home.path().join("token"), "hf_stored\n").unwrap();
    user.hub.requests();
    assert!(user.error(NAME).contains("does not know the token"));
    assert_eq!(user.hub.requests()[0].authorization.as_deref(), Some("Bearer hf_stored"));

    // Nothing listens on a port of which the listener is gone.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = format!("http://{gone}");
    for (variable, value, expected) in [
        ("HF_ENDPOINT", gone.as_str(), "check the network"),
        ("HF_ENDPOINT", "localhost", "HF_ENDPOINT: expected https://HOST"),
        ("HF_TOKEN", "hf secret", "HF_TOKEN: a token is one word"),
        ("SSL_CERT_FILE", env!("CARGO_BIN_EXE_fasq-run"), "it holds no certificate"),
    ] {
        let error = failed(user.run(NAME).env(variable, value).output().unwrap());
        assert!(error.contains(expected), "{error}");
    }
    for name in ["hf:model", "hf:../model", "hf:org/model@", "hf:org/model/README.md"] {
        assert!(user.error(name).contains("hf:ORG/NAME"), "{name}");
    }
}

#[test]
fn an_unknown_family_is_refused_before_its_weights_come() {
    let user = User::of(SINGLE);
    user.hub.put("config.json", r#"{"model_type": "gpt2"}"#);
    assert!(user.error(NAME).contains("gpt2"));
    let paths: Vec<_> = user.hub.requests().into_iter().map(|request| request.path).collect();
    let config = format!("/{REPOSITORY}/resolve/{COMMIT}/config.json");
    assert_eq!(paths, [format!("/api/models/{REPOSITORY}/revision/main?blobs=true"), config]);
}

#[test]
fn hostile_answers_are_refused() {
    let blob = "0".repeat(40);
    let whole = |file: &str, id: &str, size: u64| json!({ "sha": COMMIT, "siblings": [{ "rfilename": file, "blobId": id, "size": size }] });
    for (listing, expected) in [
        (json!([]), "list of files"),
        (json!({ "sha": "../../x", "siblings": [] }), "../../x"),
        (json!({ "sha": COMMIT, "siblings": [] }), "no config.json"),
        (whole("config.json", "../../x", 2), "../../x"),
        (whole("config.json", &blob, u64::MAX), "at most 268435456 bytes"),
        (whole("q/m.gguf", &blob, 2), "hf:org/model/q/m.gguf"),
    ] {
        let user = User::of(SINGLE);
        user.hub.say(listing);
        let error = user.error(NAME);
        assert!(error.contains(expected), "{expected}: {error}");
        assert_eq!(user.hub.requests().len(), 1);
    }
    for file in ["../../../escaped", "/tmp/escaped", "sub/escaped", "..", "missing.safetensors"] {
        let user = User::of(SHARDED);
        user.hub.put("model.safetensors.index.json", json!({ "weight_map": { "a": file } }).to_string());
        let error = user.error(NAME);
        assert!(error.contains("hf:org/model") && error.contains(file), "{error}");
        assert!(asked(&user.hub.requests(), file).is_empty());
    }
}

#[test]
fn a_revision_is_asked_for_and_remembered() {
    let user = User::of(SINGLE);
    succeeded(user.run("hf:org/model@refs/pr/1").output().unwrap());
    assert!(user.hub.requests()[0].path.contains("/revision/refs%2Fpr%2F1?"));
    assert_eq!(std::fs::read_to_string(user.cached("refs/refs/pr/1")).unwrap(), COMMIT);
    // Another name of the commit needs no file again.
    succeeded(user.run("hf:org/model@v1").output().unwrap());
    assert_eq!(user.hub.requests().len(), 1);
}

#[test]
fn two_programs_do_not_write_one_file() {
    let user = User::of(SINGLE);
    let locks = user.home.path().join("hub/.locks/models--org--model");
    std::fs::create_dir_all(&locks).unwrap();
    let path = locks.join(format!("{}.lock", sha256(&user.hub.content("model.safetensors"))));
    let lock = std::fs::File::create(path).unwrap();
    lock.lock().unwrap();
    assert!(user.error(NAME).contains("another program is downloading this file"));
    drop(lock);
    succeeded(user.run(NAME).output().unwrap());
}

#[test]
fn a_path_wins_over_a_name() {
    let user = User::of(SINGLE);
    let folder = user.home.path().join(NAME);
    std::fs::create_dir_all(&folder).unwrap();
    assert!(user.error(NAME).contains("no config.json in this folder"));
    assert!(user.hub.requests().is_empty());
}

#[test]
fn all_parts_of_a_split_file_come() {
    let user = User::of(SINGLE);
    for part in ["q 4/m-00001-of-00002.gguf", "q 4/m-00002-of-00002.gguf"] {
        user.hub.put(part, part);
    }
    // These are no models, but they are where one is looked for.
    let error = user.error("hf:org/model/q 4/m-00001-of-00002.gguf");
    assert!(!error.contains("hf:org/model: "), "{error}");
    for part in ["q 4/m-00001-of-00002.gguf", "q 4/m-00002-of-00002.gguf"] {
        let path = user.cached(&format!("snapshots/{COMMIT}")).join(part);
        assert_eq!(std::fs::read_to_string(path).unwrap(), part);
    }
    assert!(asked(&user.hub.requests(), ".safetensors").is_empty());
    assert!(user.error("hf:org/model/q/none.gguf").contains("no q/none.gguf in this repository"));
}
