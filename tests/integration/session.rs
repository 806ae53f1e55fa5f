//! Sessions: slots that are not there, a device that fails in the middle of a pass, logits that are not numbers.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::path::Path;

use fasq::backend::cpu::{self, Cpu};
use fasq::backend::{Backend, Key, WeightData};
use fasq::model::{Batch, Model, Session, SessionOptions, Source};
use fasq::ops::Op;
use fasq::{Error, Result};
use pollster::block_on;

/// The CPU, made to fail.
#[derive(Default)]
pub struct Faulty {
    /// Fail half-way through the next list of operations.
    pub fail: Cell<bool>,
    /// Words that are NaN whenever a buffer is read.
    nan: RefCell<Range<usize>>,
}

impl Backend for Faulty {
    type Buffer = cpu::Buffer;
    type Weight = cpu::Weight;

    fn describe(&self) -> String {
        "a faulty device".into()
    }

    fn alloc(&self, words: usize) -> Result<Self::Buffer> {
        Cpu.alloc(words)
    }

    fn write(&self, buffer: &Self::Buffer, words: &[u32]) -> Result<()> {
        Cpu.write(buffer, words)
    }

    async fn read(&self, buffer: &Self::Buffer, start: usize, words: usize) -> Result<Vec<u32>> {
        let mut words = Cpu.read(buffer, start, words).await?;
        words[self.nan.borrow().clone()].fill(f32::NAN.to_bits());
        Ok(words)
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Self::Weight> {
        Cpu.weight(blocks)
    }

    fn run(&self, ops: &[Op<'_, cpu::Buffer, cpu::Weight>], key: Option<Key>) -> Result<()> {
        if self.fail.take() {
            Cpu.run(&ops[..ops.len() / 2], key)?;
            return Err(Error::backend("faulty", "the device was lost"));
        }
        Cpu.run(ops, key)
    }
}

pub fn model(fixture: &str) -> Model<Faulty> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(fixture);
    Model::load(Faulty::default(), &Source::open(&folder).unwrap()).unwrap()
}

const OPTIONS: SessionOptions = SessionOptions { slots: 2, context: 32, max_rows: 8 };

/// The logits after `tokens` in a session of their own.
fn fresh(model: &Model<Faulty>, tokens: &[u32]) -> Vec<f32> {
    block_on(Session::new(model, OPTIONS).unwrap().prefill(0, tokens)).unwrap()
}

#[test]
fn a_slot_that_is_not_there_is_an_error_that_names_it() {
    for fixture in ["qwen3-tiny", "qwen35-tiny"] {
        let model = model(fixture);
        let mut session = Session::new(&model, OPTIONS).unwrap();
        for slot in [2, usize::MAX] {
            for error in [
                session.position(slot).unwrap_err(),
                session.reset(slot).unwrap_err(),
                session.rewind(slot, 0).unwrap_err(),
                block_on(session.extend(slot, &[1])).unwrap_err(),
                block_on(session.extend(slot, &[])).unwrap_err(),
                block_on(session.prefill(slot, &[1])).map(drop).unwrap_err(),
                block_on(session.delta_state(0, slot)).map(drop).unwrap_err(),
            ] {
                let expected = format!("slot of a session: expected below 2, found {slot}");
                assert_eq!(error.to_string(), expected, "{fixture}");
            }
        }
        assert_eq!(session.rewind(1, 7).unwrap(), 0, "{fixture}: a slot that is there");
    }
}

#[test]
fn a_prompt_without_tokens_has_no_logits() {
    let model = model("qwen3-tiny");
    let mut session = Session::new(&model, OPTIONS).unwrap();
    let error = block_on(session.prefill(0, &[])).unwrap_err().to_string();
    assert_eq!(error, "tokens of a prompt: expected at least 1, found 0");
}

#[test]
fn after_a_failed_pass_a_delta_net_starts_over() {
    let model = model("qwen35-tiny");
    let mut session = Session::new(&model, OPTIONS).unwrap();
    block_on(session.prefill(0, &[5, 6, 7])).unwrap();
    block_on(session.prefill(1, &[8, 9])).unwrap();
    model.backend().fail.set(true);
    let error = block_on(session.prefill(0, &[10, 11])).unwrap_err().to_string();
    assert_eq!(error, "backend faulty: the device was lost");

    // Nobody knows how many tokens are in the slot's state: it is empty, and the other slot is as it was.
    assert_eq!(session.position(0).unwrap(), 0);
    assert_eq!(session.position(1).unwrap(), 2);
    assert_eq!(block_on(session.prefill(0, &[12, 13, 14])).unwrap(), fresh(&model, &[12, 13, 14]));
    assert_eq!(block_on(session.prefill(1, &[10])).unwrap(), fresh_after(&model, &[8, 9], &[10]));
}

#[test]
fn after_a_failed_pass_attention_goes_on() {
    let model = model("qwen3-tiny");
    let mut session = Session::new(&model, OPTIONS).unwrap();
    block_on(session.prefill(0, &[5, 6, 7])).unwrap();
    model.backend().fail.set(true);
    block_on(session.prefill(0, &[10, 11])).unwrap_err();
    assert_eq!(session.position(0).unwrap(), 3);
    assert_eq!(block_on(session.prefill(0, &[12])).unwrap(), fresh_after(&model, &[5, 6, 7], &[12]));
}

/// The logits after `tokens` in a session of their own that has read `before` in a pass before.
fn fresh_after(model: &Model<Faulty>, before: &[u32], tokens: &[u32]) -> Vec<f32> {
    let mut session = Session::new(model, OPTIONS).unwrap();
    block_on(session.extend(0, before)).unwrap();
    block_on(session.prefill(0, tokens)).unwrap()
}

#[test]
fn a_logit_that_is_nan_is_an_error_not_a_token() {
    let model = model("qwen3-tiny");
    let vocab = model.config().vocab;
    let greedy = |nan: Range<usize>| {
        let mut session = Session::new(&model, OPTIONS).unwrap();
        *model.backend().nan.borrow_mut() = nan;
        let tokens = block_on(session.greedy(&Batch::of_slot(0, 0, &[1, 2, 3], true)));
        *model.backend().nan.borrow_mut() = 0..0;
        tokens.map_err(|error| error.to_string())
    };
    assert_eq!(greedy(0..0).map(|tokens| tokens.len()), Ok(3));
    let error = |token: usize, row: usize| {
        Err(format!("logit of token {token} after wanted row {row}: expected a number, found NaN"))
    };
    assert_eq!(greedy(0..vocab), error(0, 0), "a row of NaN");
    assert_eq!(greedy(vocab + 17..vocab + 18), error(17, 1), "one NaN of a row");
}
