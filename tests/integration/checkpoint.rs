//! Hugging Face folders: damaged and hostile ones are one error that names the culprit, never a panic.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use fasq::backend::cpu::Cpu;
use fasq::checkpoint::Checkpoint;
use fasq::generate::{Generator, Tokenizer};
use fasq::model::{Model, Source};
use fasq::quantize::{Plan, Rules};
use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

const SINGLE: &str = "llama32-tiny-tied";
const SHARDED: &str = "llama3-tiny-sharded";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const SHARD: &str = "model-00002-of-00007.safetensors";

/// A copy of a fixture that a test may damage.
struct Folder(TempDir);

impl Folder {
    fn copy(fixture: &str) -> Self {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
        let folder = Self(tempfile::tempdir().unwrap());
        for file in fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()) {
            let name = file.file_name().unwrap();
            if name != "reference.safetensors" && name != "prompts.json" {
                fs::copy(&file, folder.0.path().join(name)).unwrap();
            }
        }
        folder
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        fs::write(self.file(name), bytes).unwrap();
        self
    }

    fn edit(self, name: &str, edit: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = fs::read(self.file(name)).unwrap();
        edit(&mut bytes);
        self.write(name, bytes)
    }

    fn edit_json(self, name: &str, edit: impl FnOnce(&mut Value)) -> Self {
        self.edit(name, |bytes| {
            let mut value = serde_json::from_slice(bytes).unwrap();
            edit(&mut value);
            *bytes = value.to_string().into();
        })
    }

    /// Another header before the same data.
    fn edit_header(self, name: &str, edit: impl FnOnce(&mut Value)) -> Self {
        self.edit(name, |bytes| {
            let (header, data) = header_and_data(bytes);
            let mut header = serde_json::from_slice(header).unwrap();
            edit(&mut header);
            *bytes = with_header(header.to_string().as_bytes(), data);
        })
    }

    fn without(self, name: &str) -> Self {
        fs::remove_file(self.file(name)).unwrap();
        self
    }

    /// Does with the folder what the programs do.
    fn open(&self) -> fasq::Result<()> {
        let source = Source::open(self.0.path())?;
        if let Source::Checkpoint(checkpoint) = &source {
            Plan::new(checkpoint, &Rules::universal())?;
        }
        let tokenizer = source.assets().tokenizer.as_ref();
        let tokenizer = tokenizer.map(|text| Tokenizer::new(text, source.config().vocab)).transpose()?;
        let model = Model::load(Cpu, &source)?;
        if let Some(tokenizer) = tokenizer {
            tokenizer.encode("Once upon a time", true)?;
            Generator::new(&model, &tokenizer, 8)?;
        }
        Ok(())
    }
}

fn header_and_data(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    rest.split_at(u64::from_le_bytes(*length) as usize)
}

fn with_header(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header, data].concat()
}

#[test]
fn whole_folders_open() {
    Folder::copy(SINGLE).open().unwrap();
    Folder::copy(SHARDED).open().unwrap();
    // A model without a tokenizer can still be measured.
    Folder::copy(SINGLE).without("tokenizer.json").open().unwrap();
}

#[test]
fn damaged_folders_are_errors_that_name_the_culprit() {
    let single = || Folder::copy(SINGLE);
    let sharded = || Folder::copy(SHARDED);
    let length = |n: u64| single().edit(WEIGHTS, |bytes| bytes[..8].copy_from_slice(&n.to_le_bytes()));
    let config = |key: &str, value: Value| single().edit_json("config.json", |config| config[key] = value);
    let norm = |key: &str, value: Value| {
        single().edit_header(WEIGHTS, |header| header["model.norm.weight"][key] = value)
    };
    let renamed = |from: &str, to: &str| {
        single().edit_header(WEIGHTS, |header| {
            let header = header.as_object_mut().unwrap();
            let info = header.remove(from).unwrap();
            header.insert(to.into(), info);
        })
    };
    for (what, folder, expected) in [
        ("no config", single().without("config.json"), "config.json"),
        ("no weights", single().without(WEIGHTS), WEIGHTS),
        ("a missing shard", sharded().without(SHARD), SHARD),
        ("an empty file", single().write(WEIGHTS, b""), WEIGHTS),
        ("a cut file", single().edit(WEIGHTS, |bytes| bytes.truncate(bytes.len() - 1)), WEIGHTS),
        ("a cut shard", sharded().edit(SHARD, |bytes| bytes.truncate(1000)), SHARD),
        ("a byte too many", single().edit(WEIGHTS, |bytes| bytes.push(0)), WEIGHTS),
        ("header length 2^64 - 1", length(u64::MAX), WEIGHTS),
        ("header length 2^64 - 9", length(u64::MAX - 8), WEIGHTS),
        ("header length 2^63", length(1 << 63), WEIGHTS),
        ("header length 0", length(0), WEIGHTS),
        ("overlapping offsets", norm("data_offsets", json!([0, 64])), WEIGHTS),
        ("offsets near 2^64", norm("data_offsets", json!([u64::MAX - 1, u64::MAX])), WEIGHTS),
        ("a shape whose product overflows", norm("shape", json!([1u64 << 40, 1u64 << 40])), WEIGHTS),
        ("a tensor of integers", norm("dtype", json!("I16")), "model.norm.weight"),
        ("a tensor that is missing", renamed("model.norm.weight", "model.norm.bias"), "model.norm"),
        ("an index that is none", sharded().write(INDEX, "[]"), INDEX),
        ("an index without files", sharded().write(INDEX, r#"{"weight_map":{}}"#), INDEX),
        ("an index that leaves the folder", sharded().write(INDEX, r#"{"weight_map":{"a":"../x"}}"#), "../x"),
        ("a config that is none", single().write("config.json", "{"), "config.json"),
        ("a config that is not text", single().write("config.json", [0xff, 0xfe]), "config.json"),
        ("an unknown family", config("model_type", json!("gpt2")), "gpt2"),
        ("too large a vocabulary", config("vocab_size", json!(1 << 20)), "embed_tokens"),
        ("another hidden size", config("hidden_size", json!(1 << 20)), "model."),
        ("more layers than there are", config("num_hidden_layers", json!(9)), "layers."),
        ("fewer layers than there are", config("num_hidden_layers", json!(1)), "layers."),
        ("a tokenizer that is none", single().write("tokenizer.json", "{}"), "tokenizer"),
        ("a tokenizer cut", single().edit("tokenizer.json", |text| text.truncate(1000)), "tokenizer"),
    ] {
        match folder.open() {
            Ok(()) => panic!("{what}: taken"),
            Err(e) => {
                let text = e.to_string();
                assert!(text.contains(expected) && !text.contains('\n'), "{what}: {text}");
            }
        }
    }
}

#[test]
fn side_files_stop_nothing() {
    for (what, folder) in [
        (
            "an index of another upload",
            Folder::copy(SINGLE).write(INDEX, r#"{"weight_map": {"a": "gone.safetensors"}}"#),
        ),
        ("a damaged generation_config.json", Folder::copy(SINGLE).write("generation_config.json", "{,}")),
        ("a damaged tokenizer_config.json", Folder::copy(SINGLE).write("tokenizer_config.json", "]")),
    ] {
        folder.open().unwrap_or_else(|e| panic!("{what}: {e}"));
    }
}

/// Side files of older folders: tokens that tokenizer.json lacks, and what ends a text.
#[test]
fn tokens_of_side_files_are_tokens() {
    // The last reserved tokens are gone from tokenizer.json.
    let without = |tokenizer: &mut Value| {
        let added = tokenizer["added_tokens"].as_array_mut().unwrap();
        added.truncate(added.len() - 2);
    };
    let tokenizer_of = |folder: Folder| {
        let checkpoint = Checkpoint::open(folder.0.path()).unwrap();
        Tokenizer::of(checkpoint.assets(), checkpoint.config().vocab).unwrap()
    };
    let added = r#"{"<|last|>": 511, "<|last_but_one|>": 510}"#;
    let tokens = r#"{"eos_token": {"content": "<|last|>"}}"#;
    let tokenizer = tokenizer_of(
        Folder::copy(SINGLE)
            .edit_json("tokenizer.json", without)
            .edit_json("tokenizer_config.json", |config| {
                config.as_object_mut().unwrap().remove("added_tokens_decoder");
                config.as_object_mut().unwrap().remove("eos_token");
            })
            .write("added_tokens.json", added)
            .write("special_tokens_map.json", tokens),
    );
    assert_eq!(tokenizer.encode("<|last|>", false).unwrap(), [511]);
    assert_eq!(tokenizer.id("<|last_but_one|>"), Some(510));
    assert!(tokenizer.ends().contains(&511) && tokenizer.len() == 512);
    let decoder = json!({"510": {"content": "<|a|>", "special": true}, "511": {"content": "<|b|>"}});
    let tokenizer = tokenizer_of(
        Folder::copy(SINGLE)
            .edit_json("tokenizer.json", without)
            .edit_json("tokenizer_config.json", |config| config["added_tokens_decoder"] = decoder)
            .write("special_tokens_map.json", r#"{"eos_token": "<|nobody|>"}"#),
    );
    assert_eq!(tokenizer.encode("<|a|><|b|>", false).unwrap(), [510, 511]);
    assert!(tokenizer.special(510).is_some() && tokenizer.special(511).is_none());
    let error = Checkpoint::open(Folder::copy(SINGLE).write("added_tokens.json", r#"{"x": "y"}"#).0.path());
    assert!(error.unwrap_err().to_string().contains("added_tokens.json"));
}

/// A tied head that is stored as well is one matrix.
#[test]
fn a_tied_head_is_taken_once() {
    let folder = Folder::copy(SINGLE);
    let bytes = fs::read(folder.file(WEIGHTS)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let embedding = tensors.tensor("model.embed_tokens.weight").unwrap();
    let all = tensors.iter().chain([("lm_head.weight", embedding.clone())]);
    let folder = folder.write(WEIGHTS, safetensors::serialize(all, None).unwrap());
    folder.open().unwrap();
    let plan = Plan::new(&Checkpoint::open(folder.0.path()).unwrap(), &Rules::universal()).unwrap();
    assert!(plan.items.iter().all(|item| item.name != "lm_head.weight"));
    // One of its own counts, whatever config.json says.
    let zeros = vec![0u8; embedding.data().len()];
    let own =
        safetensors::tensor::TensorView::new(embedding.dtype(), embedding.shape().to_vec(), &zeros).unwrap();
    let all = tensors.iter().chain([("lm_head.weight", own)]);
    let folder = folder.write(WEIGHTS, safetensors::serialize(all, None).unwrap());
    folder.open().unwrap();
    let plan = Plan::new(&Checkpoint::open(folder.0.path()).unwrap(), &Rules::universal()).unwrap();
    assert!(plan.items.iter().any(|item| item.name == "lm_head.weight"));
}

#[test]
fn what_is_no_number_is_named_in_every_tensor() {
    let name = "model.layers.0.input_layernorm.weight";
    let folder = Folder::copy(SINGLE).edit(WEIGHTS, |bytes| {
        let (header, data) = header_and_data(bytes);
        let header: Value = serde_json::from_slice(header).unwrap();
        let (from, dtype) =
            (header[name]["data_offsets"][0].as_u64().unwrap() as usize, &header[name]["dtype"]);
        let nan: &[u8] = if dtype == "F32" { &[0, 0, 0xc0, 0x7f] } else { &[0xff, 0x7f] };
        let at = bytes.len() - data.len() + from;
        bytes[at..at + nan.len()].copy_from_slice(nan);
    });
    let text = folder.open().unwrap_err().to_string();
    assert!(text.contains(name) && text.contains("element 0"), "{text}");
    let out = folder.file("out.fasq").display().to_string();
    let folder = folder.0.path().display().to_string();
    let quantize = Command::new(env!("CARGO_BIN_EXE_fasq-quantize"))
        .args([&folder, "-o", &out, "--feedback", "none", "--device", "cpu"])
        .output()
        .unwrap();
    let text = String::from_utf8(quantize.stderr).unwrap();
    assert!(!quantize.status.success() && text.contains(name), "{text}");
}

#[test]
fn a_tokenizer_of_another_vocabulary_is_refused() {
    let folder = Folder::copy(SINGLE).edit_json("tokenizer.json", |tokenizer| {
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": 1_000_000, "content": "<far>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }));
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.insert("<far>".into(), json!(1_000_000));
    });
    let text = folder.open().unwrap_err().to_string();
    assert!(text.contains("vocab"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Flipped bits in weights may pass unnoticed, but nothing may panic.
    #[test]
    fn flipped_bits_never_panic(
        name in prop::sample::select(vec!["config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6),
    ) {
        let folder = Folder::copy(SINGLE).edit(name, |bytes| {
            // Of weights only the header: the rest are numbers of any value.
            let end = if name == WEIGHTS { 8 + header_and_data(bytes).0.len() } else { bytes.len() };
            for (at, bit) in flips {
                bytes[at.index(end)] ^= 1 << bit;
            }
        });
        let _ = folder.open();
    }

    /// Values replaced by numbers and text at random.
    #[test]
    fn scrambled_texts_never_panic(
        name in prop::sample::select(vec!["config.json", INDEX, SHARD]),
        at in any::<prop::sample::Index>(),
        piece in prop::sample::select(vec!["0", "-1", "18446744073709551615", "1e999", "null", "[]", "{}", "\"", "9999999999999"]),
        cut in 0usize..12,
    ) {
        let folder = Folder::copy(SHARDED).edit(name, |bytes| {
            let (text, data) = if name == SHARD { header_and_data(bytes) } else { (&bytes[..], &[][..]) };
            let at = at.index(text.len());
            let text = [&text[..at], piece.as_bytes(), &text[(at + cut).min(text.len())..]].concat();
            *bytes = if name == SHARD { with_header(&text, data) } else { text };
        });
        let _ = folder.open();
    }
}
