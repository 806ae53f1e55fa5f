//! Every kernel in every kind of specialisation, for tests that compile them without a device.

use super::kernels::*;
use super::matmul::{self, Tables, Tiles};
use super::step;
use super::unit::Unit;
use super::{attention, delta_rule};
use crate::pq::PqSpec;

/// A unit with the most dynamic shared memory that a launch of it asks for.
pub type Checked = (Unit, u32);

/// All of them, for a device whose blocks may have `limit` bytes of shared memory.
pub fn units(limit: usize) -> Vec<Checked> {
    let mut all = Vec::new();
    for file in [
        "argmax",
        "dense_matmul",
        "embed",
        "gated_norm",
        "gather_rows",
        "hessian",
        "pq_matmul",
        "pq_matvec_subspace",
        "quantize",
        "rms_norm",
        "rotate",
        "stream_read",
        "swiglu",
        "top_k",
    ] {
        all.push((plain(file), 0));
    }
    let caches = [Cache::F32, Cache::F16];
    all.extend(caches.into_iter().flat_map(|cache| [32, 128].map(|lanes| (rope_cache(lanes, cache), 0))));
    all.extend([2, 4].map(|kernel| (causal_conv(kernel), 0)));
    all.extend((1..=8).flat_map(|d| [(kmeans(d), 0), (feedback(d), 0)]));
    for key_dim in [16, 128] {
        all.push((delta_rule::by_rows(key_dim), 0));
        all.extend(delta_rule::by_chunks(key_dim, limit));
    }
    for dtype in 0..3 {
        all.extend((1..=4).map(|rows| (dense(dtype, rows), 0)));
        all.extend(dense_row(dtype, 14336, limit));
        all.extend(
            dense_row(dtype, 14336, limit)
                .map(|(unit, shared)| (step::example(&unit, 0, DENSE_ROW_WARPS), shared)),
        );
    }
    for (head_dim, group, splits) in
        [(1, 1, 8), (16, 2, 16), (64, 1, 1), (64, 2, 32), (80, 3, 8), (128, 4, 16), (256, 4, 33)]
    {
        for cache in caches {
            all.push((
                attention::by_splits(head_dim, group, splits, cache),
                attention::split_shared(head_dim, group),
            ));
        }
        all.extend(attention::rows_shared(head_dim).map(|shared| (attention::by_tiles(head_dim), shared)));
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
        all.extend([(embed_pq(&spec), 0), (matvec_any(&spec), 0), (tiles(&spec), 0), decode(&spec, lookup)]);
        all.push((matmul::pack(&spec), 0));
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
                    all.push((matvec.unit, matvec.shared(matvec.chunk(64))));
                    // A step takes ten times as long to compile; these are one of each kind.
                    let kinds = [(1, 16), (2, 64), (2, 256), (3, 4096), (4, 256)];
                    if kinds.contains(&(spec.d, spec.k)) {
                        all.push((
                            step::example(&matvec.unit, matvec.table, matvec.warps),
                            matvec.step_shared(matvec.step_chunk(64)),
                        ));
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
    all.retain(|(unit, _)| seen.insert(*unit));
    all
}
