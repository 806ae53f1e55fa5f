//! Other quantizers' weights: GPTQ and AWQ folders packed here bit by bit, and what they must become.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fasq::backend::cpu::Cpu;
use fasq::baseline::{Rtn, unpack};
use fasq::checkpoint::Checkpoint;
use fasq::model::arch::{self, Role};
use fasq::model::{Model, Session, SessionOptions, Source};
use fasq::quantize::{Plan, Rules};
use half::f16;
use pollster::block_on;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use tempfile::TempDir;

const FIXTURE: &str = "llama32-tiny-tied";
const UP: &str = "model.layers.1.mlp.up_proj";

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(FIXTURE)
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Numbers that look random.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(n)) as u32
    }
}

/// How a folder is packed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Gptq { bits: u32, zero_less_one: bool, act_order: bool },
    Awq,
}

const GROUP: usize = 32;

/// Writes numbers of `bits` bits into words, one bit after the other.
fn stream(bits: u32, numbers: &[u32]) -> Vec<u32> {
    let all = numbers.iter().flat_map(|n| (0..bits).map(move |bit| n >> bit & 1));
    let all: Vec<u32> = all.collect();
    all.chunks(32).map(|word| word.iter().enumerate().map(|(i, bit)| bit << i).sum()).collect()
}

/// Eight numbers of 4 bits in a word in AWQ's order.
fn awq_words(numbers: &[u32]) -> Vec<u32> {
    let order = [0, 2, 4, 6, 1, 3, 5, 7];
    let word = |eight: &[u32]| order.iter().enumerate().map(|(place, i)| eight[*i] << (4 * place)).sum();
    numbers.chunks_exact(8).map(word).collect()
}

fn int_tensor(shape: [usize; 2], words: Vec<u32>) -> (Dtype, Vec<usize>, Vec<u8>) {
    assert_eq!(shape[0] * shape[1], words.len());
    (Dtype::I32, shape.to_vec(), words.into_iter().flat_map(u32::to_le_bytes).collect())
}

fn f16_tensor(shape: [usize; 2], values: &[f16]) -> (Dtype, Vec<usize>, Vec<u8>) {
    (Dtype::F16, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Replaces every linear layer by a packed one of random codes; also the weights `[out, in]` that these mean.
fn pack(layout: Layout) -> (Tensors, BTreeMap<String, Vec<f16>>) {
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    let mut random = Random(7);
    let (mut tensors, mut weights) = (Tensors::new(), BTreeMap::new());
    for spec in arch::tensors(checkpoint.config(), &|name| checkpoint.contains(name)) {
        let raw = checkpoint.raw(&spec.name).unwrap();
        if spec.role != Role::Linear {
            tensors.insert(spec.name, (raw.dtype, raw.shape.to_vec(), raw.bytes.to_vec()));
            continue;
        }
        let (outs, ins) = (spec.shape[0], spec.shape[1]);
        let groups = ins / GROUP;
        let bits = if let Layout::Gptq { bits, .. } = layout { bits } else { 4 };
        let mut group_of: Vec<usize> = (0..ins).map(|column| column / GROUP).collect();
        if let Layout::Gptq { act_order: true, .. } = layout {
            (1..ins).for_each(|i| group_of.swap(i, random.below(i as u32 + 1) as usize));
        }
        let mut numbers = |n: usize, low: u32| -> Vec<u32> {
            (0..n).map(|_| low + random.below((1 << bits) - low)).collect()
        };
        // GPTQ's first format cannot say a zero point of 0.
        let (codes, zeros) = (numbers(ins * outs, 0), numbers(groups * outs, 1));
        let scales: Vec<f16> =
            (0..groups * outs).map(|_| f16::from_f32((1 + random.below(999)) as f32 / 5e4)).collect();
        let weight = |at: usize| {
            let (out, column) = (at / ins, at % ins);
            let place = group_of[column] * outs + out;
            let steps = codes[column * outs + out] as f32 - zeros[place] as f32;
            f16::from_f32(scales[place].to_f32() * steps)
        };
        weights.insert(spec.name.clone(), (0..outs * ins).map(weight).collect());

        let name = |part: &str| spec.name.replace(".weight", part);
        tensors.insert(name(".scales"), f16_tensor([groups, outs], &scales));
        match layout {
            Layout::Gptq { bits, zero_less_one, .. } => {
                let columns: Vec<Vec<u32>> = (0..outs)
                    .map(|out| {
                        stream(bits, &codes.iter().skip(out).step_by(outs).copied().collect::<Vec<_>>())
                    })
                    .collect();
                let rows = ins * bits as usize / 32;
                let words = (0..rows * outs).map(|at| columns[at % outs][at / outs]).collect();
                tensors.insert(name(".qweight"), int_tensor([rows, outs], words));
                let less: Vec<u32> = zeros.iter().map(|zero| zero - u32::from(zero_less_one)).collect();
                let words = less.chunks(outs).flat_map(|row| stream(bits, row)).collect();
                tensors.insert(name(".qzeros"), int_tensor([groups, outs * bits as usize / 32], words));
                let index = group_of.iter().flat_map(|group| (*group as u32).to_le_bytes()).collect();
                tensors.insert(name(".g_idx"), (Dtype::I32, vec![ins], index));
            }
            Layout::Awq => {
                tensors.insert(name(".qweight"), int_tensor([ins, outs / 8], awq_words(&codes)));
                tensors.insert(name(".qzeros"), int_tensor([groups, outs / 8], awq_words(&zeros)));
            }
        }
    }
    (tensors, weights)
}

fn config(layout: Layout) -> Value {
    match layout {
        Layout::Gptq { bits, zero_less_one, act_order } => json!({
            "quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": act_order,
            "checkpoint_format": if zero_less_one { "gptq" } else { "gptq_v2" },
        }),
        Layout::Awq => {
            json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": true, "version": "gemm"})
        }
    }
}

fn write(tensors: &Tensors, quantization: Option<Value>) -> TempDir {
    let folder = TempDir::new().unwrap();
    let text = std::fs::read_to_string(fixture().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    if let Some(quantization) = quantization {
        config["quantization_config"] = quantization;
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let bytes = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
    folder
}

fn logits(source: &Source) -> Vec<f32> {
    let model = Model::load(Cpu, source).unwrap();
    let mut session = Session::new(&model, SessionOptions::default()).unwrap();
    block_on(session.prefill(0, &[480, 5, 77, 301])).unwrap()
}

const LAYOUTS: [Layout; 6] = [
    Layout::Gptq { bits: 4, zero_less_one: true, act_order: false },
    Layout::Gptq { bits: 3, zero_less_one: true, act_order: true },
    Layout::Gptq { bits: 4, zero_less_one: false, act_order: true },
    Layout::Gptq { bits: 8, zero_less_one: true, act_order: false },
    Layout::Gptq { bits: 2, zero_less_one: false, act_order: false },
    Layout::Awq,
];

#[test]
fn packed_folders_become_their_weights() {
    for layout in LAYOUTS {
        let (tensors, weights) = pack(layout);
        let folder = write(&tensors, Some(config(layout)));
        let mut checkpoint = Checkpoint::open(folder.path()).unwrap();
        let bytes = checkpoint.bytes();
        unpack(&mut checkpoint, folder.path()).unwrap();
        assert_eq!(checkpoint.bytes(), bytes, "files are as large as they are");
        let mut plain = tensors.clone();
        plain.retain(|name, _| name.ends_with("weight") && !name.ends_with("qweight"));
        for (name, expected) in &weights {
            let raw = checkpoint.raw(name).unwrap();
            let found: Vec<f16> =
                raw.bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
            assert!(found == *expected, "{layout:?} {name}");
            let shape = [raw.shape[0], raw.shape[1]];
            plain.insert(name.clone(), f16_tensor(shape, expected));
        }
        let plain = write(&plain, None);
        let [packed, plain] = [&folder, &plain].map(|folder| logits(&Source::open(folder.path()).unwrap()));
        assert_eq!(packed, plain, "{layout:?}");
    }
}

#[test]
fn without_an_index_neighbours_share_a_group() {
    let layout = LAYOUTS[0];
    let (with_index, weights) = pack(layout);
    let mut without = with_index.clone();
    without.retain(|name, _| !name.ends_with("g_idx"));
    // One of zeros says nothing either.
    let mut zeros = with_index;
    zeros.iter_mut().filter(|(name, _)| name.ends_with("g_idx")).for_each(|(_, tensor)| tensor.2.fill(0));
    for tensors in [without, zeros] {
        let folder = write(&tensors, Some(config(layout)));
        let mut checkpoint = Checkpoint::open(folder.path()).unwrap();
        unpack(&mut checkpoint, folder.path()).unwrap();
        let name = format!("{UP}.weight");
        let expected: Vec<u8> = weights[&name].iter().flat_map(|w| w.to_le_bytes()).collect();
        assert_eq!(checkpoint.raw(&name).unwrap().bytes, expected);
    }
}

/// The same weights, however the settings are written.
#[test]
fn settings_are_read_in_every_spelling() {
    let layout = LAYOUTS[2];
    let (tensors, _) = pack(layout);
    let read = |folder: &TempDir| logits(&Source::open(folder.path()).unwrap());
    let expected = read(&write(&tensors, Some(config(layout))));
    let mut newer = config(layout);
    newer["format"] = newer["checkpoint_format"].take();
    assert_eq!(read(&write(&tensors, Some(newer))), expected);
    // Settings by layer follow from the shapes; those that are said need not hold then.
    let mut by_layer = config(layout);
    (by_layer["bits"], by_layer["dynamic"]) = (8.into(), json!({"+:.*": {"bits": 4}}));
    assert_eq!(read(&write(&tensors, Some(by_layer))), expected);
    // AutoGPTQ before 0.5: a file of its own, and biases of zeros.
    let mut zeros = tensors.clone();
    let rows = tensors[&format!("{UP}.scales")].1[1];
    zeros.insert(format!("{UP}.bias"), (Dtype::F16, vec![rows], vec![0; 2 * rows]));
    let own = write(&zeros, None);
    let error = Source::open(own.path()).unwrap_err().to_string();
    assert!(error.contains("quantize_config.json"), "{error}");
    let settings = json!({"bits": 4, "group_size": GROUP, "checkpoint_format": "gptq_v2"});
    std::fs::write(own.path().join("quantize_config.json"), settings.to_string()).unwrap();
    assert_eq!(read(&own), expected);
    // A bias that is none of zeros means something.
    zeros.get_mut(&format!("{UP}.bias")).unwrap().2[1] = 0x3c;
    let biased = write(&zeros, Some(config(layout)));
    let error = Model::load(Cpu, &Source::open(biased.path()).unwrap()).err().unwrap().to_string();
    assert!(error.contains(&format!("{UP}.bias")), "{error}");
    // Not to be quantized again.
    let packed = Checkpoint::open(biased.path()).unwrap();
    let error = Plan::new(&packed, &Rules::universal()).unwrap_err().to_string();
    assert!(error.contains("GPTQ or AWQ"), "{error}");
}

/// The error of opening a folder damaged so.
fn damaged(layout: Layout, damage: impl FnOnce(&mut Tensors, &mut Value)) -> String {
    let (mut tensors, _) = pack(layout);
    let mut quantization = config(layout);
    damage(&mut tensors, &mut quantization);
    let folder = write(&tensors, Some(quantization));
    match Source::open(folder.path()) {
        Err(error) => error.to_string(),
        Ok(source) => Model::load(Cpu, &source).err().expect("an error").to_string(),
    }
}

#[test]
fn damaged_folders_name_the_tensor() {
    let (gptq, awq) = (LAYOUTS[1], Layout::Awq);
    for layout in [gptq, awq] {
        for part in ["qzeros", "scales"] {
            let name = format!("{UP}.{part}");
            let error = damaged(layout, |tensors, _| drop(tensors.remove(&name)));
            assert!(error.contains(&name), "{error}");
            let error = damaged(layout, |tensors, _| {
                let (_, shape, bytes) = tensors.get_mut(&name).unwrap();
                bytes.truncate(bytes.len() / shape[0]);
                shape[0] = 1;
            });
            assert!(error.contains(UP) && error.contains("expected"), "{error}");
        }
        let error = damaged(layout, |tensors, _| {
            let tensor = tensors.get_mut(&format!("{UP}.qweight")).unwrap();
            (tensor.0, tensor.1[1]) = (Dtype::F16, tensor.1[1] * 2);
        });
        assert!(error.contains(&format!("{UP}.qweight")) && error.contains("F16"), "{error}");
        let error = damaged(layout, |tensors, _| drop(tensors.remove(&format!("{UP}.qweight"))));
        assert!(error.contains(UP) && error.contains("missing"), "{error}");
        let error = damaged(layout, |tensors, _| {
            let nan = f16::NAN.to_le_bytes();
            tensors.get_mut(&format!("{UP}.scales")).unwrap().2[..2].copy_from_slice(&nan);
        });
        assert!(error.contains(&format!("{UP}.scales")) && error.contains("finite"), "{error}");
        let error = damaged(layout, |tensors, _| {
            let weight = (Dtype::F16, vec![1, 1], vec![0; 2]);
            drop(tensors.insert(format!("{UP}.weight"), weight));
        });
        assert!(error.contains(&format!("{UP}.weight")), "{error}");
        let error = damaged(layout, |_, config| config["bits"] = 5.into());
        assert!(error.contains("quantization_config.bits") && error.contains('5'), "{error}");
        let error = damaged(layout, |_, config| config["group_size"] = 0.into());
        assert!(error.contains("quantization_config.group_size"), "{error}");
        let error = damaged(layout, |_, config| config["quant_method"] = "hqq".into());
        assert!(error.contains("gptq or awq") && error.contains("hqq"), "{error}");
        let error = damaged(layout, |tensors, _| tensors.retain(|name, _| !name.ends_with(".qweight")));
        assert!(error.contains("qweight"), "{error}");
    }
    let index = format!("{UP}.g_idx");
    let error = damaged(gptq, |tensors, _| tensors.get_mut(&index).unwrap().2[3] = 0x80);
    assert!(error.contains(&index) && error.contains("groups below 3"), "{error}");
    let error = damaged(gptq, |tensors, _| {
        let tensor = tensors.get_mut(&index).unwrap();
        tensor.1[0] -= 1;
        tensor.2.truncate(4 * tensor.1[0]);
    });
    assert!(error.contains(&index) && error.contains("[96]"), "{error}");
    let error = damaged(gptq, |tensors, _| {
        let (_, shape, bytes) = tensors.get_mut(&format!("{UP}.qweight")).unwrap();
        shape[0] -= 1;
        bytes.truncate(4 * shape[0] * shape[1]);
    });
    assert!(error.contains(&format!("{UP}.qweight")), "{error}");
    let error = damaged(gptq, |tensors, _| {
        let (_, shape, bytes) = tensors.get_mut(&format!("{UP}.qzeros")).unwrap();
        shape[1] -= 3;
        bytes.truncate(4 * shape[0] * shape[1]);
    });
    assert!(error.contains(&format!("{UP}.qzeros")) && error.contains("224 codes"), "{error}");
    assert!(damaged(gptq, |_, config| config["checkpoint_format"] = "marlin".into()).contains("marlin"));
    assert!(damaged(awq, |_, config| config["version"] = "gemv".into()).contains("gemv"));
}

#[test]
fn rounding_loses_less_with_more_bits() {
    let exact = logits(&Source::open(&fixture()).unwrap());
    let rounded = |rtn: &str| {
        let mut source = Source::open(&fixture()).unwrap();
        source.round(rtn.parse::<Rtn>().unwrap()).unwrap();
        let off: f32 = logits(&source).iter().zip(&exact).map(|(a, b)| (a - b).powi(2)).sum();
        (source.bytes(), off)
    };
    let original = Source::open(&fixture()).unwrap().bytes();
    let (eight, four, three) = (rounded("rtn-8-g32"), rounded("rtn-4-g32"), rounded("rtn-3-g32"));
    assert!(original > eight.0 && eight.0 > four.0 && four.0 > three.0);
    assert!(0.0 < eight.1 && eight.1 * 10.0 < four.1 && four.1 < three.1, "{eight:?} {four:?} {three:?}");
    let mut file = Source::open(&fixture()).unwrap();
    file.round(Rtn { bits: 8, group: 32 }).unwrap();
    let once = logits(&file);
    file.round(Rtn { bits: 8, group: 32 }).unwrap();
    let twice: f32 = logits(&file).iter().zip(&once).map(|(a, b)| (a - b).powi(2)).sum();
    assert!(twice < eight.1 / 10.0, "rounded weights stay: {twice} {eight:?}");
}
