//! The product of one row with a product-quantized matrix, without decoding it: `y[n] = scale[n] * sum over j of
//! codebook_j[code[n, j]] . x_j`.
//!
//! Two ways. Where a matrix has at least as many rows as a codebook has centroids, all products `centroid . x_j`
//! are put in a table first, and a weight row is a sum of table entries; subspaces are taken in blocks whose tables
//! stay in L1. Otherwise centroids are looked up and multiplied.

use multiversion::multiversion;
use rayon::prelude::*;
use wide::f32x4;

use super::weight::{Codes, Output, Pq};

/// Entries of a table: a code of 8 bits or fewer needs no bounds check.
const ENTRIES: usize = 256;
/// Tables that are used at a time: 32 KiB, inside L1.
const TABLES: usize = 32;
/// Weight rows of one task.
const ROWS: usize = 128;

/// `y = W x` for one row of x, rotated if the weight is.
pub fn run(weight: &Pq, x: &[f32], y: &mut [f32], out: Output<'_>) {
    match &weight.codes {
        Codes::U8(codes) if weight.rows >= weight.k => by_table(weight, codes, x, y, out),
        Codes::U8(codes) => by_lookup(weight, codes, sum_rows_u8, x, y, out),
        Codes::U16(codes) => by_lookup(weight, codes, sum_rows_u16, x, y, out),
    }
}

fn by_table(weight: &Pq, codes: &[u8], x: &[f32], y: &mut [f32], out: Output<'_>) {
    let (k, d, lanes, subspaces) = (weight.k, weight.d, weight.lanes, weight.subspaces());
    let mut tables = vec![[0.0; ENTRIES]; subspaces];
    tables.par_iter_mut().zip(x.par_chunks(d)).with_min_len(TABLES).enumerate().for_each(
        |(j, (table, x))| {
            products(&weight.codebooks[j / weight.group * k * lanes..][..k * lanes], lanes, x, table);
        },
    );
    let y = &mut y[out.offset..out.offset + weight.rows];
    y.par_chunks_mut(ROWS).enumerate().for_each(|(task, y)| {
        let mut sums = [0f32; ROWS];
        let codes = &codes[task * ROWS * subspaces..];
        for (block, tables) in tables.chunks(TABLES).enumerate() {
            for (sum, codes) in sums.iter_mut().zip(codes.chunks_exact(subspaces)).take(y.len()) {
                *sum += sum_entries(&codes[block * TABLES..][..tables.len()], tables);
            }
        }
        for (i, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
            let n = task * ROWS + i;
            out.store(n, weight.scales[n] * sum, y);
        }
    });
}

/// `table[c] = codebook[c] . x` for a codebook `[k, lanes]` and x of up to so many elements.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn products(codebook: &[f32], lanes: usize, x: &[f32], table: &mut [f32; ENTRIES]) {
    match *x {
        [a, b] if lanes == 2 => {
            for (t, c) in table.iter_mut().zip(codebook.as_chunks::<2>().0) {
                *t = c[0] * a + c[1] * b;
            }
        }
        _ => {
            for (t, c) in table.iter_mut().zip(codebook.chunks_exact(lanes)) {
                *t = c.iter().zip(x).map(|(c, x)| c * x).sum();
            }
        }
    }
}

/// Sum of `tables[j][codes[j]]`, in eight chains of additions.
fn sum_entries(codes: &[u8], tables: &[[f32; ENTRIES]]) -> f32 {
    let mut sums = [0f32; 8];
    let ((codes, code_tail), (tables, table_tail)) = (codes.as_chunks::<8>(), tables.as_chunks::<8>());
    for (codes, tables) in codes.iter().zip(tables) {
        for i in 0..8 {
            sums[i] += tables[i][usize::from(codes[i])];
        }
    }
    let tail: f32 = code_tail.iter().zip(table_tail).map(|(code, table)| table[usize::from(*code)]).sum();
    sums.iter().sum::<f32>() + tail
}

fn by_lookup<C: Copy + Sync>(
    weight: &Pq,
    codes: &[C],
    sum_rows: fn(&Pq, &[C], &[f32], &mut [f32]),
    x: &[f32],
    y: &mut [f32],
    out: Output<'_>,
) {
    let subspaces = weight.subspaces();
    let mut padded = vec![0.0; subspaces * weight.lanes];
    for (padded, x) in padded.chunks_exact_mut(weight.lanes).zip(x.chunks(weight.d)) {
        padded[..x.len()].copy_from_slice(x);
    }
    let y = &mut y[out.offset..out.offset + weight.rows];
    y.par_chunks_mut(ROWS).enumerate().for_each(|(task, y)| {
        let mut sums = [0f32; ROWS];
        let codes = &codes[task * ROWS * subspaces..][..y.len() * subspaces];
        sum_rows(weight, codes, &padded, &mut sums[..y.len()]);
        for (i, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
            let n = task * ROWS + i;
            out.store(n, weight.scales[n] * sum, y);
        }
    });
}

/// Adds to `sums` what rows of `codes` make of x `[subspaces, lanes]`.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn sum_rows_u8(weight: &Pq, codes: &[u8], x: &[f32], sums: &mut [f32]) {
    sum_rows(weight, codes, x, sums);
}

/// The same for wider codes.
#[multiversion(targets("x86_64+avx512f+avx512vl+fma", "x86_64+avx2+fma", "aarch64+neon"))]
fn sum_rows_u16(weight: &Pq, codes: &[u16], x: &[f32], sums: &mut [f32]) {
    sum_rows(weight, codes, x, sums);
}

#[inline(always)]
fn sum_rows<C: Copy + Into<usize>>(weight: &Pq, codes: &[C], x: &[f32], sums: &mut [f32]) {
    match weight.lanes {
        1 => sum_rows_of::<1, C>(weight, codes, x, sums),
        2 => sum_rows_of::<2, C>(weight, codes, x, sums),
        4 => sum_rows_of::<4, C>(weight, codes, x, sums),
        _ => sum_rows_of::<8, C>(weight, codes, x, sums),
    }
}

#[inline(always)]
fn sum_rows_of<const L: usize, C: Copy + Into<usize>>(weight: &Pq, codes: &[C], x: &[f32], sums: &mut [f32]) {
    let (centroids, x) = (weight.codebooks.as_chunks::<L>().0, x.as_chunks::<L>().0);
    for (codes, sum) in codes.chunks_exact(x.len()).zip(sums) {
        let groups = codes.chunks(weight.group).zip(x.chunks(weight.group));
        for (book, (codes, x)) in centroids.chunks_exact(weight.k).zip(groups) {
            *sum += sum_products(book, codes, x);
        }
    }
}

/// Sum of `book[codes[j]] . x[j]`, in four chains of additions.
#[inline(always)]
fn sum_products<const L: usize, C: Copy + Into<usize>>(
    book: &[[f32; L]],
    codes: &[C],
    x: &[[f32; L]],
) -> f32 {
    let step = 16 / L;
    let (mut sums, mut tail) = ([f32x4::ZERO; 4], 0.0);
    let (steps, x_steps) = (codes.chunks_exact(step), x.chunks_exact(step));
    for (code, x) in steps.remainder().iter().zip(x_steps.remainder()) {
        tail += book[(*code).into()].iter().zip(x).map(|(c, x)| c * x).sum::<f32>();
    }
    for (codes, x) in steps.zip(x_steps) {
        let mut centroids = [[0f32; 4]; 4];
        for (to, &code) in centroids.as_flattened_mut().chunks_exact_mut(L).zip(codes) {
            to.copy_from_slice(&book[code.into()]);
        }
        let x = x.as_flattened().as_chunks::<4>().0;
        for ((sum, centroid), x) in sums.iter_mut().zip(centroids).zip(x) {
            *sum += f32x4::from(centroid) * f32x4::from(*x);
        }
    }
    let [a, b, c, d] = sums;
    ((a + b) + (c + d)).reduce_add() + tail
}
