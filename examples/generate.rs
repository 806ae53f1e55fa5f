//! Continues a text with the demo model, piece by piece: `cargo run --release --example generate`.

use std::io::Write;

use fasq::Result;
use fasq::backend::cpu::Cpu;
use fasq::generate::{Generator, Limits, Sampler, Sampling, Tokenizer};
use fasq::model::{Model, Source};

fn main() -> Result<()> {
    let text = run("models/wiki-32m.fasq", "The castle was built in", |piece| {
        print!("{piece}");
        let _ = std::io::stdout().flush();
    })?;
    println!("\n{} bytes", text.len());
    Ok(())
}

/// The text that the model at `path` writes after `prompt`; `show` sees each piece as it comes.
pub fn run(path: &str, prompt: &str, mut show: impl FnMut(&str)) -> Result<String> {
    let source = Source::open(path.as_ref())?;
    let model = Model::load(Cpu, &source)?;
    let tokenizer = Tokenizer::of(source.assets(), model.config().vocab)?;
    let mut generator = Generator::new(&model, &tokenizer, 256)?;
    let mut sampler = Sampler::new(Sampling { temperature: 0.7, seed: 1, ..Sampling::default() })?;
    let limits = Limits { tokens: Some(48), stop: vec![] };
    let mut text = String::new();
    for piece in generator.stream(&tokenizer.encode(prompt, true)?, &mut sampler, limits, None)? {
        let piece = piece?;
        show(&piece);
        text += &piece;
    }
    Ok(text)
}
