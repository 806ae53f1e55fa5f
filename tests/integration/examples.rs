//! The programs in examples/.

#[allow(dead_code, reason = "its main is the example's")]
#[path = "../../examples/batch.rs"]
mod batch;
#[allow(dead_code, reason = "its main is the example's")]
#[path = "../../examples/generate.rs"]
mod generate;
#[allow(dead_code, reason = "its main is the example's")]
#[path = "../../examples/quantize.rs"]
mod quantize;

const DEMO: &str = "models/wiki-32m.fasq";

#[test]
fn generate_streams_a_text() {
    let mut pieces = String::new();
    let text = generate::run(DEMO, "The castle was built in", |piece| pieces += piece).unwrap();
    assert!(text.len() > 20 && text == pieces, "{text:?}, in pieces {pieces:?}");
}

#[test]
fn quantize_writes_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("tiny.fasq");
    let report = quantize::quantize("tests/fixtures/llama32-tiny-tied".as_ref(), &out).unwrap();
    assert_eq!(report.bytes, out.metadata().unwrap().len());
    assert!(fasq::format::Reader::open(&out).is_ok());
}

#[test]
fn a_batch_writes_what_each_sequence_writes_alone() {
    let prompts = ["The castle was built in", "He was born"];
    let together = batch::run(DEMO, &prompts, 8).unwrap();
    for (prompt, text) in prompts.iter().zip(&together) {
        assert!(!text.is_empty());
        assert_eq!(batch::run(DEMO, &[prompt], 8).unwrap(), [text.as_str()]);
    }
}
