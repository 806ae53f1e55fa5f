//! For tests without a device: every kernel in every kind of specialisation, and plans.

use super::Precision;
use super::device::Capabilities;
use super::device::unit::{Source, Unit};
use super::lower::kernels::*;
use super::lower::paper::Tables;
use super::lower::{Tiles, by_chunks, by_rows, by_splits, by_tiles, pack_unit, rows_shared, split_shared};
use super::schedule::{self, Untuned, persistent_unit};
use crate::backend::dry::{self, Dry};
use crate::ops::Op;
use crate::pq::{PqSpec, Scope};
use crate::tensor::{Form, Stored};

/// A unit with the most dynamic shared memory that a launch of it asks for.
pub type Checked = (Unit, u32);

/// All of them, for a device whose blocks may have `limit` bytes of shared memory.
pub fn units(limit: usize) -> Vec<Checked> {
    let mut all = Vec::new();
    for source in [
        Source::Argmax,
        Source::DenseMatmul,
        Source::Embed,
        Source::GatedNorm,
        Source::GatherRows,
        Source::Hessian,
        Source::PqMatmul,
        Source::PqSumParts,
        Source::PqTiles,
        Source::Quantize,
        Source::RmsNorm,
        Source::QkNorm,
        Source::Rotate,
        Source::StreamRead,
        Source::Glu,
        Source::TopK,
    ] {
        all.push((source.unit(), 0));
    }
    let caches = [Cache::F32, Cache::F16];
    all.extend(caches.into_iter().flat_map(|cache| [32, 128].map(|lanes| (rope_cache(lanes, cache), 0))));
    all.extend([2, 4].map(|kernel| (causal_conv(kernel), 0)));
    all.extend((1..=8).flat_map(|d| [(kmeans(d), 0), (feedback(d), 0)]));
    for key_dim in [16, 128] {
        all.push((by_rows(key_dim), 0));
        all.extend(by_chunks(key_dim, limit));
    }
    for dtype in 0..3 {
        all.extend((1..=4).map(|rows| (dense(dtype, rows), 0)));
        all.extend(dense_row(dtype, 14336, limit));
        all.extend(
            dense_row(dtype, 14336, limit)
                .map(|(unit, shared)| (persistent(&unit, 0, DENSE_ROW_WARPS), shared)),
        );
    }
    for (head_dim, group, splits) in
        [(1, 1, 8), (16, 2, 16), (64, 1, 1), (64, 2, 32), (80, 3, 8), (128, 4, 16), (256, 4, 33)]
    {
        for cache in caches {
            all.push((by_splits(head_dim, group, splits, cache), split_shared(head_dim, group)));
        }
        all.extend(rows_shared(head_dim).map(|shared| (by_tiles(head_dim), shared)));
    }
    let specs = [
        "1-4",
        "1-16",
        "1-4096",
        "2-16",
        "2-64",
        "2-128",
        "2-256",
        "2-512",
        "2-1024",
        "2-4096",
        "3-512",
        "3-4096",
        "4-256",
        "4-4096",
        "5-1024",
        "6-256",
        "7-128",
        "8-256",
        "8-4096",
        "8-65536",
        "2-64@subspace",
        "2-256@subspace",
        "1-16@subspace",
        "3-128@subspace",
        "4-256@subspace",
        "6-128@subspace",
        "2-1024@subspace",
        "3-512@group:4",
    ];
    for (text, spec) in specs.into_iter().filter_map(|text| Some((text, text.parse::<PqSpec>().ok()?))) {
        let lookup = Lookup::of(&spec, 4096, limit);
        all.extend([(embed_pq(&spec), 0), (matvec_any(&spec), 0), decode(&spec, lookup)]);
        all.push((pack_unit(spec.d), 0));
        all.extend(Tables::new(&spec).map(|tables| (tables.unit, tables.shared)));
        // One spec of each lookup and width of entries by every shape of a tile, the others by a small and a large one.
        let every = ["2-256", "3-4096", "8-256", "8-65536", "2-256@subspace"].contains(&text);
        let rows = if every { &[4, 16, 32, 128, 512][..] } else { &[16, 512] };
        for &rows in rows {
            let tiles = Tiles::new(&spec, lookup, rows, limit);
            all.push((tiles.unit, tiles.shared));
        }
        for rows in [1, 4, 8, 16].into_iter().filter(|rows| *rows <= matvec_tokens(&spec, lookup, limit)) {
            match lookup {
                Lookup::Shared { replicas } if rows > 1 => {
                    let kernel = Rows::new(&spec, replicas, rows, limit);
                    all.push((kernel.unit, kernel.shared));
                }
                Lookup::Shared { replicas } => {
                    let matvec = Matvec::new(&spec, replicas, limit);
                    all.push((matvec.unit.clone(), matvec.shared(matvec.chunk(64))));
                    // A persistent kernel takes ten times as long to compile; these are one of each kind.
                    let kinds = [(1, 16), (2, 64), (2, 256), (3, 4096), (4, 256)];
                    let shared = matvec.persistent_shared(matvec.persistent_chunk(64));
                    if kinds.contains(&(spec.d, spec.k)) {
                        all.push((persistent(&matvec.unit, matvec.table, matvec.warps), shared));
                    }
                    if (spec.d, spec.k) == (2, 256) {
                        let unit = matvec.unit.clone().with("PQ_ADDED_NORM", 1);
                        all.push((persistent(&unit, matvec.table, matvec.warps), shared));
                    }
                }
                Lookup::Subspace => {
                    let matvec = MatvecSubspace::new(&spec, rows);
                    all.push((matvec.unit, matvec.table));
                    all.push((tables(&spec), 0));
                }
                Lookup::Memory => {}
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    all.retain(|(unit, _)| seen.insert(unit.clone()));
    all
}

/// A persistent kernel with every phase for matrices of a unit.
fn persistent(matrix: &Unit, table: u32, warps: u32) -> Unit {
    let mut constants = matrix.constants().clone();
    constants.extend(rope_cache(128, Cache::F16).constants());
    constants.extend(by_splits(128, 4, 16, Cache::F16).constants());
    persistent_unit(&constants, table, warps * 32)
}

/// An H200 and an RTX 3090, for plans without a device.
pub const H200: Capabilities = Capabilities { arch: 90, sms: 132, shared_limit: 227 << 10 };
pub const RTX_3090: Capabilities = Capabilities { arch: 86, sms: 82, shared_limit: 99 << 10 };

/// A backend that makes the plans which a device of these capabilities would run, and runs nothing.
pub fn dry(capabilities: Capabilities) -> Dry {
    let planner = move |ops: &[Op<'_, dry::Buffer, dry::Weight>]| {
        let untuned = Untuned { shared_limit: capabilities.shared_limit };
        let segments = schedule::plan(ops, capabilities, Precision::Half, &untuned)?;
        Ok(segments.iter().map(ToString::to_string).collect())
    };
    Dry::new(Box::new(planner), stacks)
}

/// The parts as which matrices are held ([`super::Weight::upload`]): neighbours of one element type or universal codebook together.
fn stacks(forms: &[Form]) -> Vec<Form> {
    let together = |a: &Form, b: &Form| match (a.stored, b.stored) {
        (Stored::Dense(a), Stored::Dense(b)) => a == b,
        (Stored::Pq(a), Stored::Pq(b)) => a == b && a.scope == Scope::Universal,
        _ => false,
    };
    let whole = |forms: &[Form]| Form { rows: forms.iter().map(|form| form.rows).sum(), ..forms[0] };
    forms.chunk_by(together).map(whole).collect()
}
