//! A device with little memory: refusals come before anything is allocated and say how much is missing; what fails
//! later leaves the text so far and a generator that can go on.

use std::cell::Cell;
use std::path::Path;
use std::rc::Rc;

use fasq::backend::cpu::{self, Cpu};
use fasq::backend::{Backend, Key, WeightData};
use fasq::generate::{Generator, Limits, Sampler, Sampling, StopReason, Tokenizer};
use fasq::model::{Model, Session, SessionOptions, Source, memory};
use fasq::ops::Op;
use fasq::{Error, Result};
use pollster::block_on;

/// The CPU with so much memory and so many submissions left.
#[derive(Clone)]
struct Small {
    free: Rc<Cell<u64>>,
    submissions: Rc<Cell<usize>>,
}

impl Small {
    fn new(free: u64) -> Self {
        Self { free: Rc::new(Cell::new(free)), submissions: Rc::new(Cell::new(usize::MAX)) }
    }

    fn take(&self, bytes: u64) -> Result<()> {
        self.check_memory(bytes)?;
        self.free.set(self.free.get() - bytes);
        Ok(())
    }
}

impl Backend for Small {
    type Buffer = cpu::Buffer;
    type Weight = cpu::Weight;

    fn describe(&self) -> String {
        "a small device".into()
    }

    fn check_memory(&self, bytes: u64) -> Result<()> {
        let free = self.free.get();
        if bytes > free {
            Err(Error::backend("small", format!("no room for {bytes}: {free} are free")))
        } else {
            Ok(())
        }
    }

    fn alloc(&self, words: usize) -> Result<Self::Buffer> {
        self.take(4 * words as u64)?;
        Cpu.alloc(words)
    }

    fn write(&self, buffer: &Self::Buffer, words: &[u32]) -> Result<()> {
        Cpu.write(buffer, words)
    }

    async fn read(&self, buffer: &Self::Buffer, start: usize, words: usize) -> Result<Vec<u32>> {
        Cpu.read(buffer, start, words).await
    }

    fn weight(&self, blocks: &[WeightData<'_>]) -> Result<Self::Weight> {
        self.take(blocks.iter().map(|block| self.weight_bytes(&block.form())).sum())?;
        Cpu.weight(blocks)
    }

    fn run(&self, ops: &[Op<'_, cpu::Buffer, cpu::Weight>], key: Option<Key>) -> Result<()> {
        Cpu.run(ops, key)?;
        let left = self.submissions.get();
        self.submissions.set(left.saturating_sub(1));
        if left == 0 { Err(Error::backend("small", "the device was lost")) } else { Ok(()) }
    }
}

const FIXTURES: [&str; 4] = ["llama3-tiny-sharded", "llama32-tiny-tied", "qwen3-tiny", "qwen35-tiny"];

fn source(name: &str) -> Source {
    Source::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

const OPTIONS: SessionOptions = SessionOptions { slots: 2, context: 70, max_rows: 9 };

#[test]
fn estimated_memory_is_what_is_taken() {
    for name in FIXTURES {
        let source = source(name);
        let small = Small::new(1 << 40);
        let weights = memory::weights(&small, &source).unwrap();
        let session = memory::session(&small, source.config(), &OPTIONS).unwrap();
        let model = Model::load(small.clone(), &source).unwrap();
        assert_eq!((1 << 40) - small.free.get(), weights, "{name}: weights");
        Session::new(&model, OPTIONS).unwrap();
        assert_eq!((1 << 40) - small.free.get(), weights + session, "{name}: session");
    }
}

#[test]
fn exactly_enough_is_enough() {
    for name in FIXTURES {
        let source = source(name);
        let any = Small::new(0);
        let needed = memory::weights(&any, &source).unwrap()
            + memory::session(&any, source.config(), &OPTIONS).unwrap();
        let runs = |free: u64| -> Result<()> {
            let small = Small::new(free);
            memory::check(&small, &source, &OPTIONS)?;
            let model = Model::load(small, &source)?;
            block_on(Session::new(&model, OPTIONS)?.prefill(0, &[1, 2, 3])).map(drop)
        };
        runs(needed).unwrap();
        let why = runs(needed - 1).unwrap_err().to_string();
        assert_eq!(why, format!("backend small: no room for {needed}: {} are free", needed - 1), "{name}");
    }
}

#[test]
fn a_refusal_takes_nothing() {
    let source = source("qwen3-tiny");
    let small = Small::new(memory::weights(&Small::new(0), &source).unwrap() - 1);
    let before = small.free.get();
    assert!(Model::load(small.clone(), &source).is_err());
    assert_eq!(small.free.get(), before, "weights were allocated");
    let small = Small::new(1 << 40);
    let model = Model::load(small.clone(), &source).unwrap();
    small.free.set(memory::session(&small, source.config(), &OPTIONS).unwrap() - 1);
    let before = small.free.get();
    assert!(Session::new(&model, OPTIONS).is_err());
    assert_eq!(small.free.get(), before, "a part of the session was allocated");
}

#[test]
fn a_lost_device_leaves_the_text_so_far() {
    let source = source("llama32-tiny-tied");
    let small = Small::new(1 << 40);
    let model = Model::load(small.clone(), &source).unwrap();
    let tokenizer =
        Tokenizer::new(source.assets().tokenizer.as_ref().unwrap(), model.config().vocab).unwrap();
    let prompt = tokenizer.encode("licensee may copy", true).unwrap();
    let mut generator = Generator::new(&model, &tokenizer, 64).unwrap();
    let mut sampler = Sampler::new(Sampling::greedy()).unwrap();
    let limits = Limits { tokens: Some(12), stop: vec!["\u{1}".into()] };
    let mut write = |submissions: usize| {
        small.submissions.set(submissions);
        let mut stream = generator.stream(&prompt, &mut sampler, limits.clone(), None).unwrap();
        let (mut text, mut error) = (String::new(), None);
        while let Some(piece) = stream.next() {
            text += &piece.unwrap_or_else(|e| {
                error = Some(e.to_string());
                stream.fail()
            });
        }
        (text, stream.reason(), error)
    };
    let (whole, reason, error) = write(usize::MAX);
    assert_eq!((reason, error), (Some(StopReason::Tokens), None));
    for submissions in [0, 1, 5, 9] {
        let (part, reason, error) = write(submissions);
        assert_eq!(reason, Some(StopReason::Failed));
        assert_eq!(error.as_deref(), Some("backend small: the device was lost"));
        assert!(whole.starts_with(&part) && part.len() < whole.len(), "{part:?} of {whole:?}");
        assert_eq!(part.is_empty(), submissions == 0, "{part:?} after {submissions} submissions");
        // A device that is there again goes on.
        assert_eq!(write(usize::MAX).0, whole);
    }
}
