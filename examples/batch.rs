//! Decodes several sequences together, a token of each in every forward pass: `cargo run --release --example batch`.

use fasq::Result;
use fasq::backend::cpu::Cpu;
use fasq::generate::Tokenizer;
use fasq::model::{Batch, Model, Row, Session, SessionOptions, Source};
use pollster::block_on;

fn main() -> Result<()> {
    let prompts = ["The castle was built in", "The album was released", "He was born in"];
    for (prompt, text) in prompts.iter().zip(run("models/wiki-32m.fasq", &prompts, 24)?) {
        println!("{prompt}{text}");
    }
    Ok(())
}

/// The `count` likeliest tokens after each prompt, one by one.
pub fn run(path: &str, prompts: &[&str], count: usize) -> Result<Vec<String>> {
    let source = Source::open(path.as_ref())?;
    let model = Model::load(Cpu, &source)?;
    let tokenizer = Tokenizer::of(source.assets(), model.config().vocab)?;
    let prompts: Vec<_> = prompts.iter().map(|text| tokenizer.encode(text, true)).collect::<Result<_>>()?;
    let options = SessionOptions { slots: prompts.len(), context: 128, max_rows: 64 };
    let mut session = Session::new(&model, options)?;

    // All prompts are one batch of rows; each slot's last row gives its next token.
    let rows = prompts.iter().enumerate().flat_map(|(slot, ids)| Batch::of_slot(slot, 0, ids, false).rows);
    let mut next = block_on(session.greedy(&Batch { rows: rows.collect() }))?;
    let mut texts = vec![vec![]; prompts.len()];
    for step in 0..count {
        texts.iter_mut().zip(&next).for_each(|(text, token)| text.push(*token));
        let row = |slot: usize| Row {
            token: next[slot],
            slot: slot as u32,
            position: (prompts[slot].len() + step) as u32,
            want_logits: true,
        };
        next = block_on(session.greedy(&Batch { rows: (0..prompts.len()).map(row).collect() }))?;
    }
    texts.iter().map(|ids| tokenizer.decode(ids, true)).collect()
}
