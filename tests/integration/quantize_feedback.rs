//! Error feedback: the recursion against the textbook, what it gains, and the whole way from a checkpoint to a file.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use fasq::Error;
use fasq::backend::cpu::Cpu;
use fasq::format::Reader;
use fasq::model::arch::Input;
use fasq::model::{Model, Source};
use fasq::pq::{self, PqMatrix, PqSpec};
use fasq::quantize::text::{self, TextSize};
use fasq::quantize::{Activations, Hessian, Inputs, Options, Plan, Rules, Target, run};
use pollster::block_on;

/// Uniform numbers from -1 to 1 of a linear congruential generator.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 / (1u64 << 52) as f64 - 1.0) as f32
    };
    (0..count).map(|_| next() + next() + next()).collect()
}

/// Inputs `[rows, cols]` that a quarter as many causes explain, for the most part.
fn correlated(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
    let causes = cols / 4;
    let (mix, hidden) = (numbers(causes * cols, seed), numbers(rows * causes, seed + 1));
    let mut x = numbers(rows * cols, seed + 2);
    for (x, hidden) in x.chunks_exact_mut(cols).zip(hidden.chunks_exact(causes)) {
        x.iter_mut().for_each(|x| *x *= 0.3);
        for (h, mix) in hidden.iter().zip(mix.chunks_exact(cols)) {
            x.iter_mut().zip(mix).for_each(|(x, m)| *x += h * m);
        }
    }
    x
}

/// The weights as they are after quantization, rotated back.
fn decoded(matrix: &PqMatrix<'_>) -> Vec<f32> {
    let mut all = vec![0.0; matrix.rows * matrix.cols];
    for (n, row) in all.chunks_exact_mut(matrix.cols).enumerate() {
        matrix.decode_row(n, row);
        if let Some(rotation) = matrix.rotation() {
            rotation.invert(row);
        }
    }
    all
}

/// |X (W - W')^T|^2
fn output_error(weights: &[f32], matrix: &PqMatrix<'_>, x: &[f32]) -> f64 {
    let cols = matrix.cols;
    let difference: Vec<f32> = weights.iter().zip(decoded(matrix)).map(|(a, b)| a - b).collect();
    let dot = |x: &[f32], w: &[f32]| -> f64 { x.iter().zip(w).map(|(x, w)| f64::from(x * w)).sum() };
    x.chunks_exact(cols).map(|x| difference.chunks_exact(cols).map(|w| dot(x, w).powi(2)).sum::<f64>()).sum()
}

fn hessian(x: &[f32], cols: usize) -> Hessian {
    let mut hessian = Hessian::new(cols);
    hessian.add(x);
    hessian
}

fn quantized(weights: &[f32], cols: usize, spec: PqSpec, hessian: Option<&Hessian>) -> PqMatrix<'static> {
    let feedback = hessian.map(|hessian| hessian.feedback("w", spec.rotation(cols), spec.d).unwrap().0);
    pq::quantize("w", 0, weights.to_vec(), cols, spec, feedback.as_ref()).unwrap().matrix
}

#[test]
fn feedback_lowers_the_output_error() {
    for (spec, cols, gain) in [
        ("2-16@universal", 192, 0.6),
        ("1-16@universal", 160, 0.6),
        ("3-64@universal", 320, 0.6),
        ("5-64@universal+norotate", 131, 0.6),
        ("2-16@matrix", 192, 0.6),
        ("4-16@group:3+norotate", 97, 0.8),
        ("2-16@subspace", 66, 0.8),
    ] {
        let spec: PqSpec = spec.parse().unwrap();
        let (weights, x) = (numbers(150 * cols, 1), correlated(2000, cols, 2));
        let with = output_error(&weights, &quantized(&weights, cols, spec, Some(&hessian(&x, cols))), &x);
        let without = output_error(&weights, &quantized(&weights, cols, spec, None), &x);
        assert!(with < gain * without, "{spec}, {cols} columns: {with} with feedback, {without} without");
        // On inputs of another kind it must lose: it is the Hessian that helps.
        let other = correlated(2000, cols, 77);
        let misled =
            output_error(&weights, &quantized(&weights, cols, spec, Some(&hessian(&other, cols))), &x);
        assert!(misled > with, "{spec}: {misled} with the wrong Hessian, {with} with the right ones");
    }
}

#[test]
fn uncorrelated_inputs_change_nothing() {
    let mut noticed = false;
    let cols = 130;
    // One input at a time: the Hessian is diagonal.
    let mut x = vec![0.0; cols * cols];
    for i in 0..cols {
        x[i * cols + i] = 0.1 + i as f32;
    }
    let weights = numbers(70 * cols, 3);
    for spec in ["2-64+norotate", "3-16@matrix+norotate", "2-16@subspace", "4-256@group:5+norotate"] {
        let spec = spec.parse().unwrap();
        let diagonal = quantized(&weights, cols, spec, Some(&hessian(&x, cols)));
        let plain = quantized(&weights, cols, spec, None);
        assert!(diagonal.codes == plain.codes, "{spec}");
        x[40 * cols + 90] = 30.0;
        let other = quantized(&weights, cols, spec, Some(&hessian(&x, cols)));
        noticed |= other.codes != plain.codes;
        x[40 * cols + 90] = 0.0;
    }
    assert!(noticed, "correlated inputs changed no code: the comparison cannot fail");
}

/// GPTQ as its paper has it, one column after the other: the error over the inverse Hessian's diagonal goes into the
/// columns that are left, and the column is eliminated from the inverse.
fn textbook(weights: &[f32], x: &[f32], levels: &[f32]) -> Vec<u16> {
    let cols = x.len() / 500;
    let mut h = vec![vec![0f64; cols]; cols];
    for x in x.chunks_exact(cols) {
        for (h, a) in h.iter_mut().zip(x) {
            h.iter_mut().zip(x).for_each(|(h, b)| *h += f64::from(a * b));
        }
    }
    let mean = (0..cols).map(|i| h[i][i]).sum::<f64>() / cols as f64;
    (0..cols).for_each(|i| h[i][i] += 0.01 * mean);
    // Gauss and Jordan.
    let mut inverse: Vec<Vec<f64>> =
        (0..cols).map(|i| (0..cols).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for c in 0..cols {
        let pivot = h[c][c];
        h[c].iter_mut().chain(&mut inverse[c]).for_each(|v| *v /= pivot);
        let (h_row, inverse_row) = (h[c].clone(), inverse[c].clone());
        for r in (0..cols).filter(|&r| r != c) {
            let factor = h[r][c];
            h[r].iter_mut().zip(&h_row).for_each(|(v, p)| *v -= factor * p);
            inverse[r].iter_mut().zip(&inverse_row).for_each(|(v, p)| *v -= factor * p);
        }
    }
    let mut rows: Vec<Vec<f64>> =
        weights.chunks_exact(cols).map(|row| row.iter().map(|&w| f64::from(w)).collect()).collect();
    let mut codes = vec![0; weights.len()];
    for c in 0..cols {
        let eliminated = inverse[c].clone();
        for (n, row) in rows.iter_mut().enumerate() {
            let distance = |level: usize| (row[c] - f64::from(levels[level])).abs();
            let code = (0..levels.len()).min_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap();
            codes[n * cols + c] = code as u16;
            let error = (row[c] - f64::from(levels[code])) / eliminated[c];
            row[c..].iter_mut().zip(&eliminated[c..]).for_each(|(w, h)| *w -= error * h);
        }
        for row in &mut inverse {
            let factor = row[c] / eliminated[c];
            row.iter_mut().zip(&eliminated).for_each(|(v, e)| *v -= factor * e);
        }
    }
    codes
}

#[test]
fn single_columns_are_gptq() {
    let cols = 140;
    let spec: PqSpec = "1-8@universal+norotate+rms".parse().unwrap();
    let x = correlated(500, cols, 5);
    let mut weights = numbers(64 * cols, 4);
    for row in weights.chunks_exact_mut(cols) {
        // Of row scale 1, which f16 holds exactly.
        let rms = (row.iter().map(|w| w * w).sum::<f32>() / cols as f32).sqrt();
        row.iter_mut().for_each(|w| *w /= rms);
    }
    let matrix = quantized(&weights, cols, spec, Some(&hessian(&x, cols)));
    assert!(matrix.scales.iter().all(|scale| scale.to_f32() == 1.0));
    let levels: Vec<f32> = matrix.codebooks.iter().map(|level| level.to_f32()).collect();
    let expected = textbook(&weights, &x, &levels);
    let mut codes = vec![0; cols];
    let mut different = 0;
    for (n, expected) in expected.chunks_exact(cols).enumerate() {
        matrix.unpack_row(n, &mut codes);
        // Rounding may turn one code, after which the rest of the row may be another.
        different += usize::from(codes != expected);
    }
    assert!(different <= 2, "{different} of 64 rows differ");
}

#[test]
fn hessian_of_many_rows_and_threads_is_the_same() {
    let cols = 300;
    let x = correlated(2500, cols, 9);
    let of = |threads: usize, x: &[f32]| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| hessian(x, cols).matrix(None))
    };
    let one = of(1, &x);
    assert!(one == of(3, &x));
    for (i, j) in [(0, 0), (5, 270), (299, 1), (256, 255)] {
        let sum: f64 = x.chunks_exact(cols).map(|x| f64::from(x[i]) * f64::from(x[j])).sum();
        assert!((f64::from(one[i * cols + j]) - sum).abs() < 1e-3 * sum.abs().max(1.0), "({i}, {j})");
    }
    let mut rows = Hessian::new(cols);
    x.chunks_exact(100 * cols).for_each(|x| rows.add(x));
    let rows = rows.matrix(None);
    assert!(one.iter().zip(&rows).all(|(a, b)| (a - b).abs() < 1e-5 * one[0]));
}

#[test]
fn inputs_that_say_nothing_are_damped_away() {
    let cols = 64;
    let weights = numbers(10 * cols, 6);
    let spec: PqSpec = "2-16+norotate".parse().unwrap();
    let silent = quantized(&weights, cols, spec, Some(&hessian(&vec![0.0; 5 * cols], cols)));
    assert!(silent.codes == quantized(&weights, cols, spec, None).codes);
    let text = hessian(&vec![f32::NAN; 5 * cols], cols).feedback("model.w", None, 2).unwrap_err().to_string();
    assert!(text.contains("model.w"), "{text}");
}

const SIZE: TextSize = TextSize { sequences: 6, length: 48, seed: 7 };

fn fixture(name: &str) -> Source {
    Source::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

fn written(model: &Model<Cpu>, size: TextSize) -> Vec<Vec<u32>> {
    block_on(text::write(model, size, &AtomicBool::new(false), &|_| {})).unwrap()
}

#[test]
fn a_model_writes_the_same_text_again() {
    for name in ["llama32-tiny-tied", "qwen35-tiny"] {
        let source = fixture(name);
        let model = Model::load(Cpu, &source).unwrap();
        let text = written(&model, SIZE);
        assert_eq!(text.len(), 6);
        assert!(text.iter().all(|tokens| tokens.len() == 48));
        if let Some(bos) = source.config().bos {
            assert!(text.iter().all(|tokens| tokens[0] == bos));
        }
        assert_eq!(text, written(&model, SIZE));
        assert_ne!(text, written(&model, TextSize { seed: 99, ..SIZE }));
        assert_ne!(text[0], text[1]);
        let fewer = written(&model, TextSize { sequences: 2, length: 20, ..SIZE });
        assert!(fewer.iter().zip(&text).all(|(few, all)| few[..] == all[..20]), "{name}");
    }
}

#[test]
fn a_file_is_cut_into_sequences() {
    let source = fixture("llama32-tiny-tied");
    let tokens: Vec<u32> = (10..30).collect();
    let cut = |length| text::cut(&tokens, source.config(), TextSize { sequences: 3, length, seed: 0 });
    let bos = source.config().bos.unwrap();
    assert_eq!(cut(4).unwrap(), [[bos, 11, 12, 13], [bos, 15, 16, 17], [bos, 23, 24, 25]]);
    assert_eq!(cut(9).unwrap().len(), 2);
    assert!(cut(21).is_err());
}

/// Runs with feedback; `stop_after` ends the run once that many matrices are done.
fn pack(
    source: &Source,
    rules: &Rules,
    out: &Path,
    resume: bool,
    stop_after: Option<usize>,
) -> fasq::Result<()> {
    let Source::Checkpoint(checkpoint) = source else { panic!("a folder") };
    let model = Model::load(Cpu, source)?;
    let stop = AtomicBool::new(false);
    let mut inputs = Activations::new(&model, &written(&model, SIZE), &stop)?;
    let done = AtomicUsize::new(0);
    let progress = |_: &str, _: usize| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        stop.store(stop_after.is_some_and(|limit| done >= limit), Ordering::Relaxed);
    };
    let options = Options { quantizer: &Cpu, resume, stop: &stop, progress: &progress };
    let plan = Plan::new(checkpoint, rules)?;
    run(checkpoint, &plan, out, &options, Some(&mut inputs)).map(|report| {
        let matrices = plan.items.iter().filter(|item| item.shape.len() == 2).count();
        assert!(report.tensors.len() <= matrices && !report.tensors.is_empty());
    })
}

/// Inputs that have nothing to say of a block.
struct Silent;

impl Inputs for Silent {
    fn next_block(
        &mut self,
        _: [bool; Input::PER_LAYER],
    ) -> fasq::Result<[Option<Hessian>; Input::PER_LAYER]> {
        Ok([const { None }; Input::PER_LAYER])
    }

    fn head(&mut self) -> fasq::Result<Hessian> {
        let mut hessian = Hessian::new(96);
        hessian.add(&numbers(5 * 96, 3));
        Ok(hessian)
    }

    fn fingerprint(&self) -> u64 {
        0
    }
}

#[test]
fn a_matrix_that_was_left_out_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("llama32-tiny-tied");
    let Source::Checkpoint(checkpoint) = &source else { panic!("a folder") };
    let plan = Plan::new(checkpoint, &Rules::universal()).unwrap();
    let out = folder.path().join("model.fasq");
    let stop = AtomicBool::new(false);
    let options = Options { quantizer: &Cpu, resume: false, stop: &stop, progress: &|_, _| () };
    let why = run(checkpoint, &plan, &out, &options, Some(&mut Silent)).unwrap_err().to_string();
    assert!(why.contains("model.layers.0.") && why.contains("not quantized"), "{why}");
    assert!(!out.exists(), "the file would have had zeros for codes");
}

#[test]
fn every_family_takes_feedback() {
    let folder = tempfile::tempdir().unwrap();
    let small = Rules {
        linear: Target::Pq("2-16@universal".parse().unwrap()),
        embed: Target::Dense,
        head: Target::Dense,
        tensors: vec![("*layers.1.*".into(), Target::Pq("3-64@matrix+norotate".parse().unwrap()))],
    };
    for name in ["llama3-tiny-sharded", "llama32-tiny-tied", "qwen3-tiny", "qwen35-tiny"] {
        let source = fixture(name);
        for (i, rules) in [Rules::universal(), small.clone()].iter().enumerate() {
            let out = folder.path().join(format!("{name}-{i}.fasq"));
            pack(&source, rules, &out, false, None).unwrap();
            let file = Source::open(&out).unwrap();
            let model = Model::load(Cpu, &file).unwrap();
            assert_eq!(written(&model, TextSize { sequences: 1, length: 8, seed: 0 })[0].len(), 8);
        }
    }
}

#[test]
fn threads_and_interruptions_do_not_change_a_byte() {
    let folder = tempfile::tempdir().unwrap();
    let source = fixture("qwen35-tiny");
    let on = |threads: usize, name: &str, stops: &[usize]| {
        let out = folder.path().join(name);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            for &stop in stops {
                let stopped = pack(&source, &Rules::universal(), &out, true, Some(stop));
                assert!(matches!(stopped, Err(Error::Interrupted)));
            }
            pack(&source, &Rules::universal(), &out, true, None).unwrap();
        });
        std::fs::read(&out).unwrap()
    };
    let one = on(1, "one.fasq", &[]);
    assert!(one == on(3, "three.fasq", &[]), "3 threads");
    assert!(one == on(2, "stopped.fasq", &[1, 4, 11]), "stopped and resumed");
    let Source::Checkpoint(checkpoint) = &source else { panic!("a folder") };
    let plain = folder.path().join("plain.fasq");
    let plan = Plan::new(checkpoint, &Rules::universal()).unwrap();
    let options =
        Options { quantizer: &Cpu, resume: false, stop: &AtomicBool::new(false), progress: &|_, _| {} };
    run(checkpoint, &plan, &plain, &options, None).unwrap();
    assert!(one != std::fs::read(&plain).unwrap(), "the comparison cannot fail");
    assert_eq!(Reader::open(&plain).unwrap().bytes(), one.len() as u64);
}
