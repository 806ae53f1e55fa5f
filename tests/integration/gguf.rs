//! GGUF files: fixtures written as llama.cpp's converter writes them, blocks of every type, damaged files and splits.

use std::path::{Path, PathBuf};

use fasq::backend::cpu::Cpu;
use fasq::checkpoint::Checkpoint;
use fasq::generate::Tokenizer;
use fasq::gguf;
use fasq::model::{Model, Session, SessionOptions, Source};
use pollster::block_on;
use serde_json::Value;
use tempfile::TempDir;

use crate::fixture::{fixture, ids};
use crate::gguf_writer::{F32, Gguf, Q8_0, Tensor, export};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Fixtures, the architecture of their files, and how their texts are cut.
const EXPORTS: [(&str, &str, &str); 11] = [
    ("llama2-tiny", "llama", "default"),
    ("llama3-tiny-sharded", "llama", "llama-bpe"),
    ("llama32-tiny-tied", "llama", "llama-bpe"),
    ("ministral3-tiny", "mistral3", "tekken"),
    ("qwen2-tiny", "qwen2", "qwen2"),
    ("qwen3-tiny", "qwen3", "qwen2"),
    ("qwen35-tiny", "qwen35", "qwen35"),
    ("gemma3-tiny", "gemma3", "default"),
    ("phi3-tiny-longrope", "phi3", "default"),
    ("smollm3-tiny", "smollm3", "llama-bpe"),
    ("olmo2-tiny", "olmo2", "dbrx"),
];

struct Written {
    folder: TempDir,
}

impl Written {
    fn new(bytes: &[u8]) -> Self {
        let written = Self { folder: TempDir::new().unwrap() };
        written.write(bytes);
        written
    }

    fn write(&self, bytes: &[u8]) {
        std::fs::write(self.path(), bytes).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("model.gguf")
    }

    fn error(&self) -> String {
        match gguf::open(&self.path()) {
            Err(error) => error.to_string(),
            Ok(_) => panic!("a damaged file opens"),
        }
    }
}

/// The logits after a text that is longer than the windows of fixtures.
fn logits(source: &Source) -> Vec<f32> {
    let model = Model::load(Cpu, source).unwrap();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    let tokens: Vec<u32> = (0..40).map(|i| 6 + i * 7 % 300).collect();
    block_on(session.prefill(0, &tokens)).unwrap()
}

/// A copy of a folder whose scores are scaled as all but one Gemma's are: metadata have no key for it.
fn expressible(folder: &Path) -> TempDir {
    let copy = TempDir::new().unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = copy.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    if json["query_pre_attn_scalar"].is_number() {
        json["query_pre_attn_scalar"] = json["head_dim"].clone();
        std::fs::write(&config, json.to_string()).unwrap();
    }
    copy
}

#[test]
fn exported_fixtures_are_the_folders() {
    for (name, arch, pre) in EXPORTS {
        let copy = expressible(&fixtures().join(name));
        let folder = Checkpoint::open(copy.path()).unwrap();
        let written = Written::new(&export(&folder, arch, pre).bytes());
        let source = Source::open(&written.path()).unwrap();
        let (expected, found) = (logits(&Source::Checkpoint(folder)), logits(&source));
        let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(expected.len() == found.len() && worst < 1e-4, "{name}: a logit is off by {worst}");

        let texts = fixture(name);
        let config = source.config();
        assert_eq!((config.bos, &config.eos), (texts.config.bos, &texts.config.eos), "{name}");
        assert_eq!(source.assets().chat_template, texts.assets.chat_template, "{name}");
        let tokenizer = Tokenizer::of(source.assets(), config.vocab).unwrap();
        let cases = texts.prompts["tokenizer_cases"].as_array().unwrap();
        for case in cases.iter().chain(texts.prompts["prompts"].as_object().unwrap().values()) {
            let (text, expected) = (case["text"].as_str().unwrap(), ids(&case["ids"]));
            let found = tokenizer.encode(text, true).unwrap();
            assert_eq!(found, expected, "{name}: {text:?}");
            if let Some(decoded) = case["decoded_skip_special"].as_str() {
                assert_eq!(tokenizer.decode(&found, true).unwrap(), decoded, "{name}: {text:?}");
            }
        }
    }
}

/// A model of one small layer.
fn small() -> Gguf {
    let mut file = Gguf::default();
    file.text("general.architecture", "llama");
    for (key, value) in [
        ("block_count", 1),
        ("context_length", 64),
        ("embedding_length", 32),
        ("feed_forward_length", 32),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ] {
        file.u32(&format!("llama.{key}"), value);
    }
    file.f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    let tokens = ["<unk>", "<s>", "</s>", "a", "b", "ab", "[PAD6]", "<0x0A>"].map(String::from);
    file.text("tokenizer.ggml.model", "llama");
    file.texts("tokenizer.ggml.tokens", &tokens);
    file.i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1, 1, 1, 5, 6]);
    file.f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -2.0, -3.0, -1.0, 0.0, 0.0]);
    file.u32("tokenizer.ggml.bos_token_id", 1);
    file.u32("tokenizer.ggml.eos_token_id", 2);
    file.flag("tokenizer.ggml.add_space_prefix", false);
    let ones = |file: &mut Gguf, name: &str, shape: &[usize]| {
        file.values(name, shape, F32, &vec![1.0; shape.iter().product()]);
    };
    for name in ["output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"] {
        ones(&mut file, &format!("{name}.weight"), &[32]);
    }
    ones(&mut file, "token_embd.weight", &[tokens.len(), 32]);
    for (name, rows) in [
        ("attn_k", 16),
        ("attn_v", 16),
        ("attn_output", 32),
        ("ffn_gate", 32),
        ("ffn_up", 32),
        ("ffn_down", 32),
    ] {
        ones(&mut file, &format!("blk.0.{name}.weight"), &[rows, 32]);
    }
    // Q8_0: each row a block, of a factor of 0.5 and codes that are the row's number.
    let rows = (0..32_u8).flat_map(|row| [&[0, 0x38][..], &[row; 32]].concat());
    file.tensors.push(Tensor {
        name: "blk.0.attn_q.weight".into(),
        shape: vec![32, 32],
        kind: Q8_0,
        bytes: rows.collect(),
    });
    file
}

#[test]
fn quantized_rows_change_places() {
    let file = small();
    let checkpoint = gguf::open(&Written::new(&file.bytes()).path()).unwrap();
    let weight = checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    let rows: Vec<f32> = weight.to_f32().chunks(32).map(|row| 2.0 * row[7]).collect();
    // Of heads of 16 rows, the even ones first.
    let head =
        |first: u8| (0..16).step_by(2).chain((1..16).step_by(2)).map(move |row| f32::from(first + row));
    assert_eq!(rows, head(0).chain(head(16)).collect::<Vec<_>>());
    assert_eq!(checkpoint.config().eos, [2]);
    let tokenizer = Tokenizer::of(checkpoint.assets(), 8).unwrap();
    assert_eq!(tokenizer.encode("ab\n", true).unwrap(), [1, 5, 7]);
    assert_eq!(tokenizer.len(), 8);
}

#[test]
fn splits_are_one_model() {
    let whole = small();
    let folder = TempDir::new().unwrap();
    let path = |at: usize| folder.path().join(format!("a-0000{}-of-00002.gguf", at + 1));
    let (first, second) = whole.tensors.split_at(5);
    for (at, tensors) in [first, second].into_iter().enumerate() {
        let mut part = if at == 0 { whole.clone() } else { Gguf::default() };
        part.u32("split.no", at);
        part.u32("split.count", 2);
        part.u32("split.tensors.count", whole.tensors.len());
        part.tensors = tensors.to_vec();
        std::fs::write(path(at), part.bytes()).unwrap();
    }
    let one = logits_of_small(&Written::new(&whole.bytes()).path());
    assert_eq!(one, logits_of_small(&path(0)));
    assert_eq!(one, logits_of_small(&path(1)));
    let copy = folder.path().join("whole.gguf");
    std::fs::copy(path(0), &copy).unwrap();
    let error = gguf::open(&copy).unwrap_err().to_string();
    assert!(error.contains("split.count") && error.contains("found 2"), "{error}");
    std::fs::copy(path(0), path(1)).unwrap();
    let error = gguf::open(&path(0)).unwrap_err().to_string();
    assert!(error.contains("00002-of-00002") && error.contains("split.no"), "{error}");
    std::fs::remove_file(path(1)).unwrap();
    let error = gguf::open(&path(0)).unwrap_err().to_string();
    assert!(error.contains("a-00002-of-00002.gguf is missing"), "{error}");
}

fn logits_of_small(path: &Path) -> Vec<f32> {
    let model = Model::load(Cpu, &Source::open(path).unwrap()).unwrap();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    block_on(session.prefill(0, &[1, 3, 4])).unwrap()
}

type Damage<'a> = &'a dyn Fn(&mut Gguf);

#[test]
fn damaged_files_name_what_is_wrong() {
    let error = |change: &dyn Fn(&mut Gguf)| {
        let mut file = small();
        change(&mut file);
        Written::new(&file.bytes()).error()
    };
    let set = |key: &'static str, kind: u32, value: &'static [u8]| {
        move |file: &mut Gguf| {
            let place = file.metadata.iter_mut().find(|(found, _)| found == key);
            let value = [&kind.to_le_bytes()[..], value].concat();
            match place {
                Some((_, found)) => *found = value,
                None => file.metadata.push((key.into(), value)),
            }
        }
    };
    const MAX: &[u8] = &[0xff; 8];
    let cases: [(Damage<'_>, &str); 20] = [
        (&set("general.architecture", 8, MAX), "general.architecture"),
        (&set("general.architecture", 8, b"\x03\0\0\0\0\0\0\0moe"), "moe"),
        (&set("general.architecture", 8, b"\x01\0\0\0\0\0\0\0\xff"), "UTF-8"),
        (&set("general.alignment", 4, &[0, 0, 0, 0]), "general.alignment"),
        (&set("general.alignment", 10, MAX), "general.alignment"),
        (&set("llama.embedding_length", 10, MAX), "hidden_size"),
        (&set("llama.embedding_length", 5, &[0xff; 4]), "llama.embedding_length"),
        (&set("llama.attention.head_count", 4, &[0; 4]), "num_attention_heads"),
        (&set("llama.attention.layer_norm_rms_epsilon", 12, &[0xff; 8]), "layer_norm_rms_epsilon"),
        (&set("llama.expert_count", 4, &[8, 0, 0, 0]), "experts"),
        (&set("llama.rope.scaling.type", 8, b"\x01\0\0\0\0\0\0\0x"), "rope.scaling.type"),
        (&set("tokenizer.ggml.add_bos_token", 7, &[2]), "truth value"),
        (&set("tokenizer.ggml.model", 8, b"\x04\0\0\0\0\0\0\0bert"), "bert"),
        (&set("tokenizer.ggml.token_type", 9, &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), "token_type"),
        (
            &set("tokenizer.ggml.tokens", 9, &[8, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            "tokens",
        ),
        (&set("x", 9, &[12, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), "metadata x"),
        (&set("x", 9, &[9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]), "lists of lists"),
        (&set("x", 13, &[]), "type 13"),
        (&|file| file.tensors[3].shape[0] = usize::MAX / 8, "token_embd.weight"),
        (&|file| file.tensors[3].kind = 20, "IQ4_NL"),
    ];
    for (change, word) in cases {
        let error = error(change);
        assert!(error.contains(word), "{word}: {error}");
    }
    let more: [(Damage<'_>, &str); 7] = [
        (&|file| drop(file.tensors.remove(3)), "token_embd.weight"),
        (&|file| file.tensors[4].name = "blk.0.what.weight".into(), "blk.0.what.weight"),
        (&|file| file.tensors[5].name = file.tensors[4].name.clone(), "twice"),
        (&|file| file.tensors[9].shape = vec![16, 2, 32, 0], "ffn_down"),
        (&|file| file.tensors[10].shape = vec![64, 16], "attn_q.weight"),
        (&|file| file.tensors[10].bytes[1] = 0x7c, "do not fit into F16"),
        (&|file| file.metadata.push(file.metadata[0].clone()), "twice"),
    ];
    for (change, word) in more {
        let error = error(change);
        assert!(error.contains(word), "{word}: {error}");
    }
    // Two tensors at one place.
    let mut bytes = small().bytes();
    let name = b"blk.0.attn_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap() + name.len() + 4 + 8 + 4;
    bytes[at..at + 8].fill(0);
    let error = Written::new(&bytes).error();
    assert!(error.contains("overlap"), "{error}");
    for (at, word) in [(4, "version"), (8, "tensor"), (16, "bytes wanted")] {
        let mut bytes = small().bytes();
        bytes[at..at + if at == 4 { 4 } else { 8 }].fill(0xff);
        let error = Written::new(&bytes).error();
        assert!(error.contains(word), "{error}");
    }
}

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Files that are changed at random places of their header are errors or models, and never a panic.
#[test]
fn changed_headers_do_no_harm() {
    let whole = small().bytes();
    let header = whole.len() - small().tensors.iter().map(|tensor| tensor.bytes.len()).sum::<usize>();
    let (mut random, written, mut errors) = (Random(1), Written::new(&[]), 0);
    for _ in 0..MUTATIONS {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(header);
            match random.below(4) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => {
                    let extreme = [u64::MAX, u64::MAX - 7, 1 << 63, 1 << 32, 1 << 31, 0][random.below(6)];
                    bytes[at..at + 8].copy_from_slice(&extreme.to_le_bytes());
                }
                _ => bytes.truncate(at.max(8)),
            }
            if bytes.len() < whole.len() {
                break;
            }
        }
        written.write(&bytes);
        let loaded =
            gguf::open(&written.path()).and_then(|model| Model::load(Cpu, &Source::Checkpoint(model)));
        errors += usize::from(loaded.is_err());
    }
    assert!(errors > MUTATIONS / 2 && errors < MUTATIONS, "{errors} errors");
}

const MUTATIONS: usize = 4000;
