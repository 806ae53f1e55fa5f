//! The .fasq file: any safetensors reader opens it, and nothing in a damaged one is believed.

use std::borrow::Cow;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use fasq::backend::WeightData;
use fasq::checkpoint::Checkpoint;
use fasq::format::{Reader, Writer};
use fasq::pq::{PqSpec, Rotation};
use fasq::quantize::{Options, Plan, Rules, Target, run};
use half::f16;
use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

const NAME: &str = "model.layers.0.mlp.down_proj.weight";
const OWN_BOOK: &str = "model.layers.0.self_attn.q_proj.weight";

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&fixture("llama32-tiny-tied")).unwrap()
}

/// A small file with universal, own and no codebooks.
static FILE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let pq = |spec: &str| Target::Pq(spec.parse().unwrap());
    let tensors = vec![("*q_proj*".into(), pq("3-16@group:4")), ("*v_proj*".into(), Target::Dense)];
    let rules =
        Rules { linear: pq("2-64@universal"), embed: pq("2-256@matrix"), head: Target::Dense, tensors };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("model.fasq");
    let checkpoint = checkpoint();
    let plan = Plan::new(&checkpoint, &rules).unwrap();
    let options = Options {
        quantizer: &fasq::backend::cpu::Cpu,
        resume: false,
        stop: &AtomicBool::new(false),
        progress: &|_, _| {},
    };
    run(&checkpoint, &plan, &out, &options, None).unwrap();
    std::fs::read(out).unwrap()
});

/// Reads everything in a file.
fn read_all(bytes: Vec<u8>) -> fasq::Result<usize> {
    let reader = Reader::from_bytes(bytes)?;
    let mut count = 0;
    for name in reader.names() {
        match reader.weight(name) {
            Ok(WeightData::Pq(matrix)) => {
                let mut row = vec![0.0; matrix.cols];
                (0..matrix.rows).for_each(|n| matrix.decode_row(n, &mut row));
            }
            Ok(WeightData::Dense { .. }) => {}
            Err(_) => count += reader.tensor(name)?.to_f32().len(),
        }
    }
    Ok(count)
}

/// The file with another header and data.
fn edited(edit: impl FnOnce(&mut Value, &mut Vec<u8>)) -> Vec<u8> {
    let (length, rest) = FILE.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
    edit(&mut header, &mut data);
    let header = header.to_string();
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat()
}

fn edit_plan(edit: impl FnOnce(&mut Vec<Value>)) -> Vec<u8> {
    edited(|header, _| {
        let text = &mut header["__metadata__"]["fasq.plan"];
        let mut plan: Vec<Value> = serde_json::from_str(text.as_str().unwrap()).unwrap();
        edit(&mut plan);
        *text = Value::Array(plan).to_string().into();
    })
}

fn entry<'a>(plan: &'a mut [Value], name: &str) -> &'a mut Value {
    plan.iter_mut().find(|entry| entry["name"] == name).unwrap()
}

/// Overwrites the first value of an F16 tensor.
fn poison(tensor: &str, value: f16) -> Vec<u8> {
    edited(|header, data| {
        let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start..start + 2].copy_from_slice(&value.to_le_bytes());
    })
}

#[test]
fn any_safetensors_reader_opens_it() {
    let file = SafeTensors::deserialize(&FILE).unwrap();
    let (_, header) = SafeTensors::read_metadata(&FILE).unwrap();
    let metadata = header.metadata().as_ref().unwrap();
    assert_eq!(metadata["fasq.version"], "1");
    let checkpoint = checkpoint();
    let (rows, cols) = (checkpoint.config().hidden, checkpoint.config().intermediate);

    // The matrix as the format's documentation describes it, without this crate's decoder.
    let codes = file.tensor(&format!("{NAME}.codes")).unwrap();
    let scales = file.tensor(&format!("{NAME}.scales")).unwrap();
    let table = file.tensor("codebook.2-64").unwrap();
    let row_bytes = (cols.div_ceil(2) * 6).div_ceil(8);
    assert_eq!((codes.dtype(), codes.shape()), (Dtype::U8, &[rows, row_bytes][..]));
    assert_eq!((scales.dtype(), scales.shape()), (Dtype::F16, &[rows][..]));
    assert_eq!((table.dtype(), table.shape()), (Dtype::F16, &[64, 2][..]));
    let half = |bytes: &[u8], at: usize| f16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]).to_f32();
    let weights = checkpoint.tensor(NAME).unwrap().to_f32();
    let (mut error, mut total) = (0.0, 0.0);
    for n in 0..rows {
        let bits = |at: usize| codes.data()[n * row_bytes + at / 8] >> (at % 8) & 1;
        let mut row: Vec<f32> = (0..cols)
            .map(|i| {
                let code: usize = (0..6).map(|bit| usize::from(bits(i / 2 * 6 + bit)) << bit).sum();
                half(scales.data(), n) * half(table.data(), 2 * code + i % 2)
            })
            .collect();
        Rotation::for_dim(cols).unwrap().invert(&mut row);
        let original = &weights[n * cols..][..cols];
        error += row.iter().zip(original).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        total += original.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
    }
    assert!((0.02..0.04).contains(&(error / total)), "{}", error / total);
    let books = file.tensor(&format!("{OWN_BOOK}.codebooks")).unwrap();
    let hidden = checkpoint.config().hidden;
    assert_eq!(books.shape(), [hidden.div_ceil(3).div_ceil(4), 16, 3]);
}

#[test]
fn texts_come_back_equal_in_meaning() {
    let reader = Reader::from_bytes(&FILE[..]).unwrap();
    let checkpoint = checkpoint();
    let (ours, theirs) = (reader.assets(), checkpoint.assets());
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(parse(&ours.config), parse(&theirs.config));
    assert_eq!(ours.tokenizer.as_deref().map(parse), theirs.tokenizer.as_deref().map(parse));
    assert_eq!(ours.generation_config.as_deref().map(parse), theirs.generation_config.as_deref().map(parse));
    assert_eq!(ours.chat_template, theirs.chat_template);
    let mut config = parse(theirs.tokenizer_config.as_ref().unwrap());
    config.as_object_mut().unwrap().retain(|key, _| key != "added_tokens_decoder" && key != "chat_template");
    assert_eq!(ours.tokenizer_config.as_deref().map(parse), Some(config));
}

#[test]
fn bytes_need_no_alignment() {
    static SHIFTED: LazyLock<Vec<u8>> = LazyLock::new(|| [&[0][..], &FILE].concat());
    let decoded = |bytes: &'static [u8]| {
        let reader = Reader::from_bytes(Cow::Borrowed(bytes)).unwrap();
        let WeightData::Pq(matrix) = reader.weight(OWN_BOOK).unwrap() else { panic!("not quantized") };
        let mut row = vec![0.0; matrix.cols];
        matrix.decode_row(1, &mut row);
        row
    };
    assert_eq!(decoded(&SHIFTED[1..]), decoded(&FILE));
    assert_ne!(decoded(&FILE), vec![0.0; decoded(&FILE).len()]);
}

#[test]
fn other_files_are_told_apart() {
    let failed = |path: &Path| Reader::open(path).unwrap_err().to_string();
    for name in ["model.safetensors", "config.json"] {
        let text = failed(&fixture("llama32-tiny-tied").join(name));
        assert!(text.contains(name) && text.contains("expected a .fasq file"), "{text}");
    }
    assert!(failed(Path::new("absent.fasq")).contains("absent.fasq"));
    assert!(read_all(vec![]).is_err());
}

#[test]
fn every_truncation_is_an_error() {
    assert!(read_all(FILE.clone()).is_ok());
    for length in (0..FILE.len()).step_by(997).chain([7, 8, 9, FILE.len() - 1]) {
        assert!(read_all(FILE[..length].to_vec()).is_err(), "{length} of {} bytes were taken", FILE.len());
    }
    assert!(read_all([&FILE[..], &[0]].concat()).is_err(), "a byte too many was taken");
}

#[test]
fn hostile_files_are_errors_that_name_the_culprit() {
    let length = |n: u64| [&n.to_le_bytes()[..], &FILE[8..]].concat();
    let tensor = |name: &str, key: &str, value: Value| {
        let name = name.to_owned();
        edited(|header, _| header[name][key] = value)
    };
    let metadata = |key: &str, value: &str| edited(|header, _| header["__metadata__"][key] = value.into());
    let codes = format!("{NAME}.codes");
    let scales = format!("{NAME}.scales");
    let books = format!("{OWN_BOOK}.codebooks");
    let removed = |key: &str| {
        edited(|header, _| {
            header["__metadata__"].as_object_mut().unwrap().remove(key).unwrap();
        })
    };
    let renamed = |from: &str, to: &str| {
        edited(|header, _| {
            let header = header.as_object_mut().unwrap();
            let info = header.remove(from).unwrap();
            header.insert(to.into(), info);
        })
    };
    let huge = json!([1u64 << 32, 1u64 << 32]);
    for (what, file, expected) in [
        ("header length 2^64 - 1", length(u64::MAX), "18446744073709551615"),
        ("header length 2^63", length(1 << 63), ".fasq"),
        ("header length one too many", length(FILE.len() as u64 - 7), ".fasq"),
        ("header length 0", length(0), ".fasq"),
        ("overlapping offsets", tensor(&codes, "data_offsets", json!([0, 96])), ".fasq"),
        ("offsets near 2^64", tensor(&codes, "data_offsets", json!([u64::MAX - 1, u64::MAX])), ".fasq"),
        ("a shape whose product overflows", tensor(&codes, "shape", huge.clone()), ".fasq"),
        ("codes of another dtype", tensor(&codes, "dtype", json!("I8")), &codes),
        ("codes of another shape", tensor(&codes, "shape", json!([1, 0])), ".fasq"),
        ("scales of another dtype", tensor(&scales, "dtype", json!("BF16")), &scales),
        ("no codes", renamed(&codes, "x.codes"), &codes),
        ("no scales", renamed(&scales, "x.scales"), &scales),
        ("no codebooks", renamed(&books, "x.codebooks"), &books),
        ("no universal table", renamed("codebook.2-64", "codebook.2-65"), "codebook.2-64"),
        ("dense and quantized", renamed("model.norm.weight", NAME), NAME),
        (
            "a tensor that is not dense",
            tensor("model.norm.weight", "dtype", json!("I16")),
            "model.norm.weight",
        ),
        ("another version", metadata("fasq.version", "2"), "fasq.version"),
        ("no version", removed("fasq.version"), ".fasq"),
        ("no config", removed("fasq.config"), "fasq.config"),
        ("a config that is none", metadata("fasq.config", "[]"), "config"),
        ("a plan that is none", metadata("fasq.plan", "{"), "fasq.plan"),
        ("no plan", removed("fasq.plan"), "fasq.plan: missing"),
        ("a scale that is NaN", poison(&scales, f16::NAN), &scales),
        ("an infinite centroid", poison(&books, f16::INFINITY), &books),
        ("a universal table with NaN", poison("codebook.2-64", f16::NAN), "codebooks"),
        ("another K", edit_plan(|plan| entry(plan, NAME)["spec"] = "2-256@universal".into()), &codes),
        (
            "K no power of two",
            edit_plan(|plan| entry(plan, NAME)["spec"] = "2-100@universal".into()),
            "2-100",
        ),
        ("another scope", edit_plan(|plan| entry(plan, OWN_BOOK)["spec"] = "3-16@matrix".into()), &books),
        ("huge dimensions", edit_plan(|plan| entry(plan, NAME)["shape"] = huge.clone()), NAME),
        ("an empty matrix", edit_plan(|plan| entry(plan, NAME)["shape"] = json!([0, 4])), NAME),
        ("rotation that cannot be", edit_plan(|plan| entry(plan, NAME)["shape"] = json!([5, 7])), NAME),
        ("a matrix twice", edit_plan(|plan| plan.push(plan[0].clone())), "twice"),
        ("a tokenizer that is not compressed", renamed("model.norm.weight", "tokenizer.json.zlib"), ""),
    ] {
        let result = Reader::from_bytes(file).and_then(|reader| {
            let names: Vec<_> = reader.names().collect();
            names.iter().try_for_each(|name| match reader.tensor(name) {
                Ok(_) => Ok(()),
                Err(_) => reader.weight(name).map(|_| ()),
            })
        });
        match result {
            Ok(()) => panic!("{what}: taken"),
            // Memory has no file name to expect in the text.
            Err(e) => assert!(e.to_string().contains(expected), "{what}: {e}"),
        }
    }
}

#[test]
fn a_scope_of_any_size_is_safe() {
    for spec in ["3-16@group:4294967295", "3-65536@subspace", "8-4@group:1"] {
        let file = edit_plan(|plan| entry(plan, OWN_BOOK)["spec"] = spec.into());
        assert!(read_all(file).is_err(), "{spec}");
    }
    let spec: PqSpec = "3-16@group:4294967295".parse().unwrap();
    assert_eq!(spec.codebooks(100), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Flipped bits may pass unnoticed (codes are any bits), but nothing may panic.
    #[test]
    fn flipped_bits_never_panic(flips in prop::collection::vec((any::<prop::sample::Index>(), 0u8..8), 1..6), in_header in any::<bool>()) {
        let mut file = FILE.clone();
        let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        for (at, bit) in flips {
            let at = at.index(if in_header { header } else { file.len() });
            file[at] ^= 1 << bit;
        }
        let _ = read_all(file);
    }

    /// Pieces of the header replaced by numbers and text at random.
    #[test]
    fn scrambled_headers_never_panic(
        at in any::<prop::sample::Index>(),
        piece in prop::sample::select(vec!["0", "-1", "18446744073709551615", "1e999", "null", "[]", "{}", "\"", "9999999999999"]),
        cut in 0usize..12,
    ) {
        let (length, rest) = FILE.split_first_chunk::<8>().unwrap();
        let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
        let at = at.index(header.len());
        let after = &header[(at + cut).min(header.len())..];
        let header = [&header[..at], piece.as_bytes(), after].concat();
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, data].concat();
        let _ = read_all(file);
    }
}

#[test]
fn rows_without_their_scales_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = checkpoint();
    let plan = Plan::new(&checkpoint, &Rules::universal()).unwrap();
    let out = folder.path().join("model.fasq");
    let (mut writer, _) = Writer::create(&out, plan.layout.clone(), 0, false).unwrap();
    let row_bytes = PqSpec::UNIVERSAL.row_bytes(checkpoint.config().intermediate);
    let why = writer.rows(NAME, 0, &vec![0; 2 * row_bytes], &[]).unwrap_err().to_string();
    assert!(why.contains(".scales") && why.contains("2 scales"), "{why}");
    assert!(writer.rows("no.such.matrix", 0, &[], &[]).is_err());
}
