use fasq::backend::Backend;
use pollster::block_on;

use crate::harness::{Checks, Device, EXACT, Random, f64s};

/// Every place with its value, sorted: NaN, then falling, then by place.
fn sorted(values: &[f32]) -> Vec<(u32, f32)> {
    let mut all: Vec<(u32, f32)> = (0..).zip(values.iter().copied()).collect();
    let rank = |v: f32| if v.is_nan() { f64::INFINITY } else { f64::from(v).min(1e300) };
    all.sort_by(|a, b| rank(b.1).total_cmp(&(rank(a.1) + 0.0)).then(a.0.cmp(&b.0)));
    all
}

pub fn cases<B: Backend>(device: &Device<B>, checks: &mut Checks) {
    for dim in [1, 5, 300, 1024, 5000, 128_256] {
        let mut random = Random::new(dim as u64);
        let plain = random.values(dim);
        let few: Vec<f32> = (0..dim).map(|_| random.below(7) as f32 - 3.0).collect();
        let same = vec![0.25f32; dim];
        let mut odd = plain.clone();
        let special =
            [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e30, -1e30, f32::NAN, 1e-40, f32::INFINITY];
        for value in special {
            odd[random.below(dim)] = value;
        }
        for (what, values) in [("plain", plain), ("few", few), ("same", same), ("odd", odd)] {
            let x = device.floats(&values);
            let all = sorted(&values);
            let largest = block_on(device.0.argmax(&x, 1, dim)).expect("argmax")[0];
            let same =
                largest.0 == all[0].0 && (largest.1 == all[0].1 || largest.1.is_nan() && all[0].1.is_nan());
            assert!(same, "argmax of {dim}, {what}: expected {:?}, found {largest:?}", all[0]);
            for k in [1, 2, 40, 256, 1000, 1024, 1500] {
                let found = block_on(device.0.top_k(&x, dim, k)).expect("top_k");
                let expected = &all[..k.min(dim)];
                let places =
                    |list: &[(u32, f32)]| list.iter().map(|(place, _)| *place as f32).collect::<Vec<_>>();
                let what = format!("places of the {k} largest of {dim}, {what}");
                let (places, expected) = (places(&found), places(expected));
                checks.close(&what, &[expected.len()], &f64s(&expected), &places, EXACT);
                let own = |(place, value): &(u32, f32)| values[*place as usize].to_bits() == value.to_bits();
                assert!(found.iter().all(own), "{what}: a value is not that of its place");
            }
        }
    }
}
