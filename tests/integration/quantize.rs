//! Product quantization against theory, and the whole way from a checkpoint to a .fasq file.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use fasq::Error;
use fasq::backend::WeightData;
use fasq::backend::cpu::Cpu;
use fasq::checkpoint::Checkpoint;
use fasq::format::{Reader, partial_path};
use fasq::pq::{self, PqMatrix, PqSpec};
use fasq::quantize::{Options, Plan, Rules, Target, run};
use proptest::prelude::*;

/// Independent Gaussians from a linear congruential generator, by Box and Muller.
fn gaussian(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let normal = |(a, b): (f64, f64)| (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    (0..count).map(|_| normal((uniform(), uniform())) as f32).collect()
}

fn quantized(weights: &[f32], cols: usize, spec: &str) -> PqMatrix<'static> {
    pq::quantize("w", 0, weights.to_vec(), cols, spec.parse().unwrap(), None).unwrap().matrix
}

/// Relative errors on Gaussian weights. d = 1 has Max's table (1960) as theory: 0.1175 for 4 levels, 0.009497 for 16,
/// 0.002499 for 32. The best that d = 2 can do at many points is 5 sqrt(3) pi / (54 K) = 0.5038 / K; for d = 3, 4 and
/// 8 the rows hold what a long k-means from random starts reaches, to 1 % (rate distortion says 2^(-2 bits)).
#[test]
fn error_of_gaussian_weights_is_what_theory_says() {
    let (rows, cols) = (512, 512);
    let weights = gaussian(rows * cols, 1);
    for (spec, expected, tolerance) in [
        ("1-4@universal", 0.1175, 0.01),
        ("1-16@universal", 0.009497, 0.02),
        ("1-32@universal", 0.002499, 0.04),
        ("2-64@universal", 0.0300, 0.01),
        ("2-256@universal", 0.00790, 0.01),
        ("2-256@universal+absmax", 0.00790, 0.25),
        ("2-256@matrix", 0.00790, 0.02),
        ("2-256@matrix+norotate", 0.00790, 0.05),
        ("2-1024@universal", 0.00203, 0.02),
        ("3-64@universal", 0.1018, 0.01),
        ("3-512@universal", 0.0274, 0.015),
        ("4-256@universal", 0.0978, 0.01),
        ("8-256@universal", 0.324, 0.01),
    ] {
        let matrix = quantized(&weights, cols, spec);
        let error = pq::relative_error(&matrix, &weights);
        assert!((error / expected - 1.0).abs() < tolerance, "{spec}: {error}, expected {expected}");
    }
}

/// A codebook for each subspace memorises: with as many centroids as rows nothing but f16 rounding is lost.
#[test]
fn a_codebook_as_large_as_the_data_is_exact() {
    let weights = gaussian(256 * 16, 2);
    let error = pq::relative_error(&quantized(&weights, 16, "2-256@subspace"), &weights);
    assert!(error < 1e-6, "{error}");
    let coarse = pq::relative_error(&quantized(&weights, 16, "2-16@subspace"), &weights);
    assert!(coarse > 1e-2, "the comparison cannot fail: {coarse}");
}

#[test]
fn the_reported_error_is_the_measured_one() {
    let cols = 96;
    let mut weights = gaussian(70 * cols, 3);
    weights[5 * cols..6 * cols].fill(0.0);
    weights[7 * cols..8 * cols].iter_mut().for_each(|w| *w *= 1e-10);
    weights[9 * cols..10 * cols].iter_mut().for_each(|w| *w *= 100.0);
    for spec in ["2-64", "3-64", "5-16@group:3", "7-16@matrix+noscale", "2-16@subspace", "8-64+norotate"] {
        let quantized = pq::quantize("w", 0, weights.clone(), cols, spec.parse().unwrap(), None).unwrap();
        let measured = pq::relative_error(&quantized.matrix, &weights);
        let reported = quantized.error.relative();
        assert!((reported / measured - 1.0).abs() < 1e-3, "{spec}: {reported}, {measured}");
        assert!(measured < 0.5, "{spec}: {measured}");
    }
}

#[test]
fn a_ragged_tail_is_coded_by_its_own_elements() {
    // 31 columns at d = 4: the last sub-vector has 3 weights. It must do as well as the rest.
    let cols = 31;
    let weights = gaussian(400 * cols, 4);
    for scope in ["universal", "matrix", "group:2", "subspace"] {
        let matrix = quantized(&weights, cols, &format!("4-256@{scope}+norotate+rms"));
        let (mut tail, mut total) = (0.0, 0.0);
        let mut decoded = vec![0.0; cols];
        for (n, row) in weights.chunks(cols).enumerate() {
            matrix.decode_row(n, &mut decoded);
            tail += row[28..].iter().zip(&decoded[28..]).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
            total += row[28..].iter().map(|a| a * a).sum::<f32>();
        }
        assert!(tail / total < 0.1, "{scope}: {}", tail / total);
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let cols = 300;
    let weights = gaussian(300 * cols, 5);
    let of = |threads: usize, weights: &[f32], spec: &str| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let matrix = pool.install(|| quantized(weights, cols, spec));
        (matrix.codes.into_owned(), matrix.codebooks.to_vec(), matrix.scales.into_owned())
    };
    for spec in ["2-64@universal+norotate", "3-256@matrix+norotate", "2-16@group:7+norotate", "2-64@subspace"]
    {
        let one = of(1, &weights, spec);
        assert!(one == of(2, &weights, spec), "{spec}, 2 threads");
        assert!(one == of(5, &weights, spec), "{spec}, 5 threads");
        let mut others = weights.clone();
        others[12345] += 1.0;
        assert!(one != of(5, &others, spec), "{spec}: the comparison cannot fail");
    }
}

#[test]
fn weights_that_cannot_be_stored_are_named() {
    let mut weights = gaussian(64 * 32, 6);
    weights[3 * 32 + 7] = f32::NAN;
    let failed = |weights: &[f32], spec: &str| {
        pq::quantize("model.w", 10, weights.to_vec(), 32, spec.parse().unwrap(), None)
            .unwrap_err()
            .to_string()
    };
    for spec in ["2-16@universal", "2-16@matrix", "2-16@subspace"] {
        let text = failed(&weights, spec);
        assert!(text.contains("model.w, row 13") && text.contains("NaN"), "{text}");
        weights[3 * 32 + 7] = 1e30;
        let text = failed(&weights, spec);
        assert!(text.contains("model.w") && text.contains("f16"), "{text}");
        weights[3 * 32 + 7] = f32::NAN;
    }
    assert!(failed(&[], "2-16").contains("model.w"));
    assert!(failed(&weights[..33], "2-16").contains("model.w"));
}

proptest! {
    #[test]
    fn packing_is_exact(bits in 2usize..=16, codes in prop::collection::vec(any::<u16>(), 0..70)) {
        let mask = ((1u32 << bits) - 1) as u16;
        let codes: Vec<u16> = codes.iter().map(|code| code & mask).collect();
        let mut packed = vec![0xff; pq::pack::packed_len(codes.len(), bits)];
        pq::pack::pack(&codes, bits, &mut packed);
        let mut unpacked = vec![0; codes.len()];
        pq::pack::unpack(&packed, bits, &mut unpacked);
        prop_assert_eq!(unpacked, codes);
    }
}

fn fixture(name: &str) -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)).unwrap()
}

/// Runs the plan; `stop_after` ends the run once that many matrices are done.
fn pack(
    checkpoint: &Checkpoint,
    rules: &Rules,
    out: &Path,
    resume: bool,
    stop_after: Option<usize>,
) -> fasq::Result<usize> {
    let plan = Plan::new(checkpoint, rules).unwrap();
    let stop = AtomicBool::new(false);
    let done = std::sync::atomic::AtomicUsize::new(0);
    let progress = |_: &str, _: usize| {
        let done = done.fetch_add(1, Ordering::Relaxed) + 1;
        stop.store(stop_after.is_some_and(|limit| done >= limit), Ordering::Relaxed);
    };
    run(checkpoint, &plan, out, &Options { quantizer: &Cpu, resume, stop: &stop, progress: &progress }, None)
        .map(|r| r.weights)
}

fn small_rules() -> Rules {
    let pq = |spec: &str| Target::Pq(spec.parse().unwrap());
    Rules {
        linear: pq("2-64@universal"),
        embed: pq("2-256@matrix"),
        head: Target::Dense,
        tensors: vec![
            ("*.q_proj.*".into(), pq("3-16@subspace")),
            ("*layers.1.*up_proj*".into(), Target::Dense),
        ],
    }
}

#[test]
fn every_family_round_trips() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama3-tiny-sharded", "llama32-tiny-tied", "qwen3-tiny", "qwen35-tiny"] {
        let checkpoint = fixture(name);
        for rules in [Rules::universal(), Rules::paper(), small_rules()] {
            let out = folder.path().join("model.fasq");
            pack(&checkpoint, &rules, &out, false, None).unwrap();
            let reader = Reader::open(&out).unwrap();
            let plan = Plan::new(&checkpoint, &rules).unwrap();
            assert_eq!(reader.config(), checkpoint.config());
            assert_eq!(reader.bytes(), plan.layout.file_len());
            assert_eq!(reader.names().count(), plan.items.len());
            for item in &plan.items {
                let source = checkpoint.tensor(&item.name).unwrap();
                match (item.shape.len(), reader.plan().iter().find(|entry| entry.name == item.name)) {
                    (2, Some(entry)) => {
                        let WeightData::Pq(matrix) = reader.weight(&item.name).unwrap() else {
                            panic!("{}: not quantized", item.name)
                        };
                        let error = pq::relative_error(&matrix, &source.to_f32());
                        assert!((error - entry.error).abs() < 2e-3 * error + 1e-9, "{}: {error}", item.name);
                        assert!(error < 0.25, "{}: {error}", item.name);
                    }
                    _ => assert_eq!(reader.tensor(&item.name).unwrap().bytes, source.bytes, "{}", item.name),
                }
            }
        }
    }
}

fn resumed(folder: &Path, checkpoint: &Checkpoint, stops: &[usize]) -> PathBuf {
    let out = folder.join(format!("{stops:?}.fasq"));
    for &stop in stops {
        let stopped = pack(checkpoint, &small_rules(), &out, true, Some(stop));
        assert!(matches!(stopped, Err(Error::Interrupted)));
        assert!(!out.exists() && partial_path(&out).exists());
    }
    let whole: usize = Plan::new(checkpoint, &small_rules()).unwrap().quantized_elements();
    let done = pack(checkpoint, &small_rules(), &out, true, None).unwrap();
    assert_eq!(done == whole, stops.is_empty(), "{done} of {whole} weights in the last run");
    assert!(!partial_path(&out).exists());
    out
}

#[test]
fn an_interrupted_run_ends_in_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = fixture("qwen3-tiny");
    let whole = std::fs::read(resumed(folder.path(), &checkpoint, &[])).unwrap();
    for stops in [&[1][..], &[3], &[2, 5, 9]] {
        let parts = std::fs::read(resumed(folder.path(), &checkpoint, stops)).unwrap();
        assert!(parts == whole, "stopped after {stops:?}");
    }
}

#[test]
fn a_partial_file_of_something_else_is_not_continued() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.fasq");
    let checkpoint = fixture("qwen3-tiny");
    let stopped = pack(&checkpoint, &Rules::universal(), &out, false, Some(2));
    assert!(matches!(stopped, Err(Error::Interrupted)));
    for (checkpoint, rules) in
        [(&checkpoint, Rules::paper()), (&fixture("llama32-tiny-tied"), Rules::universal())]
    {
        let text = pack(checkpoint, &rules, &out, true, None).unwrap_err().to_string();
        assert!(text.contains("another source"), "{text}");
    }
    assert!(Reader::open(&partial_path(&out)).is_err(), "a partial file was read as a whole one");

    // A last line that was cut off is forgotten, a damaged one refused.
    let partial = std::fs::read(partial_path(&out)).unwrap();
    let end = 8 + partial[8..].iter().position(|&b| b == 0).unwrap();
    let mut cut = partial.clone();
    cut[end - 3..end].fill(0);
    std::fs::write(partial_path(&out), &cut).unwrap();
    pack(&checkpoint, &Rules::universal(), &out, true, None).unwrap();
    let mut damaged = partial;
    damaged[end - 3] = b'x';
    std::fs::write(partial_path(&out), &damaged).unwrap();
    let text = pack(&checkpoint, &Rules::universal(), &out, true, None).unwrap_err().to_string();
    assert!(text.contains("damaged"), "{text}");
    // Without --resume it starts over.
    let resumed = std::fs::read(&out).unwrap();
    pack(&checkpoint, &Rules::universal(), &out, false, None).unwrap();
    assert!(std::fs::read(&out).unwrap() == resumed);
}

#[test]
fn rules_are_checked_against_the_model() {
    let checkpoint = fixture("llama32-tiny-tied");
    let spec: PqSpec = "2-16".parse().unwrap();
    let rules = Rules { tensors: vec![("*.nothing.*".into(), Target::Pq(spec))], ..Rules::universal() };
    let text = Plan::new(&checkpoint, &rules).unwrap_err().to_string();
    assert!(text.contains("*.nothing.*"), "{text}");
    // Norms are no weight matrices, whatever the pattern says.
    let rules = Rules { tensors: vec![("*norm*".into(), Target::Pq(spec))], ..Rules::universal() };
    assert!(Plan::new(&checkpoint, &rules).is_err());
}
