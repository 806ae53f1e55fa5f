// y = W x (+ bias) (+ y) for product-quantized W and many rows of x, on matrix units: a tile of W is decoded to f16 in
// workgroup memory, x rounded to f16 beside it, and sums are f32. Workgroup: TENSOR_W_ROWS rows of W (x) times
// TENSOR_X_ROWS rows of x (y); 8 subgroups, each a quarter of the one and half of the other.
//
// A step takes the same word, then code, of STREAMS neighbouring streams: neighbouring columns. The next words, and
// the next columns of x, are loaded while a step is multiplied. [28672 x 4096] times 512 rows on an H200: 1.37 ms, 88
// TFLOP/s, a tenth of the matrix units' peak: decoding and its barriers are the bound.

// What 8 subgroups cover, and 256 invocations load.
const_assert TENSOR_W_ROWS == 128u && TENSOR_X_ROWS == 128u && TENSOR_COLUMNS == 32u;

// Pairs from one row of a tile to the next: 16-byte pieces of rows that meet few bank conflicts.
const STRIDE = TENSOR_COLUMNS / 2u + 4u;
override D: u32;
override BITS: u32;
// Words of the codebook.
override BOOK: u32;
// Streams of a step: TENSOR_COLUMNS / D.
override STREAMS: u32;
override HAS_BIAS: bool;

@group(0) @binding(0) var<uniform> params: LinearParams;
@group(0) @binding(1) var<uniform> weight: Weight;
@group(0) @binding(2) var<storage, read> x: array<vec2<f32>>; // [rows, weight.cols / 2]
@group(0) @binding(3) var<storage, read> words: array<u32>; // [weight.rows, weight.stride]
@group(0) @binding(4) var<storage, read> tables: array<vec2<f16>>; // [codebooks, K, D / 2]
@group(0) @binding(5) var<storage, read> row_info: array<vec2<u32>>; // [weight.rows]: scale (f32), codebooks' first word
@group(0) @binding(6) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(7) var<storage, read_write> y: array<f32>; // [rows, y_stride]

var<workgroup> table: array<vec2<f16>, BOOK>;
var<workgroup> w_tile: array<vec2<f16>, TENSOR_W_ROWS * STRIDE>;
var<workgroup> x_tile: array<vec2<f16>, TENSOR_X_ROWS * STRIDE>;
// Sums of each subgroup before they are written to y.
var<workgroup> stage: array<f32, 8u * 256u>;

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sums = coop_mat16x16<f32, C>;

// Sums of 16 rows of x from r on with 16 rows of W from n on, which the subgroup has staged.
fn store(ids: Ids, r: u32, n: u32) {
    for (var k = 0u; k < 8u; k++) { // unroll 8
        let i = ids.lane + k * 32u;
        let row = r + i / 16u;
        let local_row = n + i % 16u;
        if (row < params.rows && local_row < weight.rows) {
            let at = weight.first + local_row;
            var v = bitcast<f32>(row_info[local_row].x) * stage[ids.subgroup * 256u + i];
            if (HAS_BIAS) {
                v += bias[at];
            }
            let out = row * params.y_stride + params.y_offset + at;
            y[out] = v + select(0.0, y[out], params.accumulate != 0u);
        }
    }
}

// Pair `p` of row `row` of x.
fn x_pair(row: u32, p: u32) -> vec2<f32> {
    let pairs = weight.cols / 2u;
    return x[min(row, params.rows - 1u) * pairs + min(p, pairs - 1u)];
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let n = group.x * TENSOR_W_ROWS;
    let r = group.y * TENSOR_X_ROWS;
    let base = row_info[n].y;
    for (var i = ids.local; i < BOOK; i += WORKGROUP) {
        table[i] = tables[base + i];
    }
    // An invocation decodes 8 pairs: stream `stream` of every `apart`-th row. It loads pair `pair` of every 16th row of x.
    let stream = ids.local % STREAMS;
    let first_row = ids.local / STREAMS;
    let apart = WORKGROUP / STREAMS;
    let pair = ids.local % 16u;
    let x_row = ids.local / 16u;
    let sub_n = ids.subgroup % 4u * 32u;
    let sub_r = ids.subgroup / 4u * 64u;
    // [4, 2]: 16 rows of x times 16 rows of W.
    var sums: array<Sums, 8>;
    var x_next: array<vec2<f32>, 8>;
    var w_next: array<u32, 8>;
    for (var k = 0u; k < 8u; k++) { // unroll 8
        sums[k] = Sums();
        x_next[k] = x_pair(r + x_row + k * 16u, pair);
        let row = min(n + first_row + k / (D / 2u) * apart, weight.rows - 1u);
        w_next[k] = words[row * weight.stride + min(stream, weight.chunks - 1u)];
    }
    for (var start = 0u; start < weight.chunks; start += STREAMS) {
        // Streams past the last one multiply zeros.
        let valid = min(STREAMS, weight.chunks - start) * D / 2u;
        for (var w = 0u; w < BITS; w++) {
            var now = w_next;
            // The words after these: of the same streams, or the first of the next ones.
            let last = w + 1u == BITS;
            let next_w = select(w + 1u, 0u, last);
            let c = min(select(start, start + STREAMS, last) + stream, weight.chunks - 1u);
            for (var k = 0u; k < 8u; k++) { // unroll 8
                let row = min(n + first_row + k / (D / 2u) * apart, weight.rows - 1u);
                w_next[k] = words[row * weight.stride + next_w * weight.chunks + c];
            }
            for (var i = 0u; i < 32u / BITS; i++) {
                let step = w * (32u / BITS) + i;
                let column = (step * weight.chunks + start) * D / 2u;
                let inside = pair < valid && column + pair < weight.cols / 2u;
                workgroupBarrier();
                for (var k = 0u; k < 8u; k++) { // unroll 8
                    let row = first_row + k / (D / 2u) * apart;
                    let e = k % (D / 2u);
                    let code = (now[k] >> (i * BITS)) & ((1u << BITS) - 1u);
                    w_tile[row * STRIDE + stream * (D / 2u) + e] = table[code * (D / 2u) + e];
                    x_tile[(x_row + k * 16u) * STRIDE + pair] = vec2<f16>(select(vec2<f32>(), x_next[k], inside));
                }
                workgroupBarrier();
                let wraps = step == STREAM - 1u;
                let ahead = (select(step + 1u, 0u, wraps) * weight.chunks + select(start, start + STREAMS, wraps)) * D / 2u;
                for (var k = 0u; k < 8u; k++) { // unroll 8
                    x_next[k] = x_pair(r + x_row + k * 16u, ahead + pair);
                }
                for (var k = 0u; k < 2u; k++) { // unroll 2
                    let b0 = coopLoad<Right>(&w_tile[sub_n * STRIDE + k * 8u], STRIDE);
                    let b1 = coopLoad<Right>(&w_tile[(sub_n + 16u) * STRIDE + k * 8u], STRIDE);
                    for (var j = 0u; j < 4u; j++) { // unroll 4
                        let a = coopLoadT<Left>(&x_tile[(sub_r + j * 16u) * STRIDE + k * 8u], STRIDE);
                        sums[2u * j] = coopMultiplyAdd(a, b0, sums[2u * j]);
                        sums[2u * j + 1u] = coopMultiplyAdd(a, b1, sums[2u * j + 1u]);
                    }
                }
            }
        }
    }
    let at = ids.subgroup * 256u;
    for (var k = 0u; k < 8u; k++) { // unroll 8
        workgroupBarrier();
        coopStoreT(sums[k], &stage[at], 16u);
        workgroupBarrier();
        store(ids, r + sub_r + k / 2u * 16u, n + sub_n + k % 2u * 16u);
    }
}
