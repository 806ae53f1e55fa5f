// y = W x (+ bias) (+ y) for product-quantized W and many rows of x: a tile of W is decoded into workgroup memory and
// multiplied there. Workgroup: TILE_W_ROWS rows of W (x) times TILE_X_ROWS rows of x (y), 4 times 4 + 4 of them in each
// invocation. A step decodes one code each of STREAMS streams of TILE_W_ROWS rows: STREAMS * D columns.
//
// Decoding a weight costs as much as multiplying it 20 times, so a decoded tile meets 128 rows of x: then arithmetic in
// f32 is the bound. Tiles are read four elements at a time, and their columns padded so that writes meet few bank
// conflicts. [6144 x 4096] times 512 rows on an H200: 1.0 ms, 25 TFLOP/s.

// What 16 times 16 invocations cover.
const_assert TILE_W_ROWS == 64u && TILE_X_ROWS == 128u;

// Vectors from one column of a tile to the next.
const W_STRIDE = TILE_W_ROWS / 4u + 1u;
const X_STRIDE = TILE_X_ROWS / 4u + 1u;
// Streams of a step, at most TILE_COLUMNS / D.
override STREAMS: u32;

// [TILE_COLUMNS, rows / 4]: columns of the step.
var<workgroup> w_tile: array<vec4<f32>, TILE_COLUMNS * W_STRIDE>;
var<workgroup> x_tile: array<vec4<f32>, TILE_COLUMNS * X_STRIDE>;

// The code of number `at` of the step's STREAMS * TILE_W_ROWS: of step `i` in the streams from `start` on.
fn step_code(n: u32, start: u32, i: u32, at: u32) -> u32 {
    let row = min(n + at / STREAMS, weight.rows - 1u);
    let c = min(start + at % STREAMS, weight.chunks - 1u);
    return code_at(row * weight.stride, i, c);
}

fn decode(n: u32, start: u32, i: u32, at: u32, code: u32) {
    let row = at / STREAMS;
    let j = min(i * weight.chunks + start + at % STREAMS, (weight.cols - 1u) / D);
    let base = row_info[min(n + row, weight.rows - 1u)].y;
    let first = centroid(base, j, code);
    for (var e = 0u; e < centroid_words(); e++) {
        let v = centroid_pair(first, e);
        let depth = (at % STREAMS) * D + 2u * e;
        w_tile[depth * W_STRIDE + row / 4u][row % 4u] = v.x;
        if (2u * e + 1u < D) {
            w_tile[(depth + 1u) * W_STRIDE + row / 4u][row % 4u] = v.y;
        }
    }
}

// Element number `at` of the step's columns from `first` on, of which `valid` are columns of x, of the rows from r on.
fn step_x(r: u32, first: u32, valid: u32, at: u32) -> f32 {
    let depth = at % (STREAMS * D);
    let row = r + at / (STREAMS * D);
    let inside = depth < valid && row < params.rows;
    return select(0.0, x[select(0u, row * weight.cols + first + depth, inside)], inside);
}

// Writes the products of a row of x with the rows of W from n on.
fn store(n: u32, row: u32, dots: vec4<f32>) {
    for (var j = 0u; j < min(4u, max(n, weight.rows) - n) && row < params.rows; j++) {
        let at = weight.first + n + j;
        var v = bitcast<f32>(row_info[n + j].x) * dots[j];
        if (HAS_BIAS) {
            v += bias[at];
        }
        let out = row * params.y_stride + params.y_offset + at;
        y[out] = v + select(0.0, y[out], params.accumulate != 0u);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let n = group.x * TILE_W_ROWS;
    let r = group.y * TILE_X_ROWS;
    if (SHARED) {
        load_table(ids.local, row_info[n].y);
    }
    let across = ids.local % 16u;
    let down = ids.local / 16u;
    let columns = STREAMS * D;
    let codes = STREAMS * TILE_W_ROWS;
    // Whether there are more rows than the first half of the tile.
    let both = r + TILE_X_ROWS / 2u < params.rows;
    let values = columns * select(TILE_X_ROWS / 2u, TILE_X_ROWS, both);
    // Four rows of W times rows 4 * down.. of the tile's first half, and times the same of its second.
    var sums_a: mat4x4<f32>;
    var sums_b: mat4x4<f32>;
    for (var start = 0u; start < weight.chunks; start += STREAMS) {
        for (var i = 0u; i < STREAM; i++) {
            let first = (i * weight.chunks + start) * D;
            // Streams past the last one, and columns past the last, multiply zeros.
            let valid = min(min(STREAMS, weight.chunks - start) * D, max(first, weight.cols) - first);
            workgroupBarrier();
            for (var at = ids.local; at < codes; at += WORKGROUP) {
                decode(n, start, i, at, step_code(n, start, i, at));
            }
            for (var at = ids.local; at < values; at += WORKGROUP) {
                let row = at / columns;
                x_tile[(at % columns) * X_STRIDE + row / 4u][row % 4u] = step_x(r, first, valid, at);
            }
            workgroupBarrier();
            for (var depth = 0u; depth < columns; depth++) {
                let w4 = w_tile[depth * W_STRIDE + across];
                let a = x_tile[depth * X_STRIDE + down];
                sums_a[0] += w4 * a.x;
                sums_a[1] += w4 * a.y;
                sums_a[2] += w4 * a.z;
                sums_a[3] += w4 * a.w;
                if (both) {
                    let b = x_tile[depth * X_STRIDE + TILE_X_ROWS / 8u + down];
                    sums_b[0] += w4 * b.x;
                    sums_b[1] += w4 * b.y;
                    sums_b[2] += w4 * b.z;
                    sums_b[3] += w4 * b.w;
                }
            }
        }
    }
    let column = n + 4u * across;
    let row = r + 4u * down;
    store(column, row, sums_a[0]);
    store(column, row + 1u, sums_a[1]);
    store(column, row + 2u, sums_a[2]);
    store(column, row + 3u, sums_a[3]);
    store(column, row + TILE_X_ROWS / 2u, sums_b[0]);
    store(column, row + TILE_X_ROWS / 2u + 1u, sums_b[1]);
    store(column, row + TILE_X_ROWS / 2u + 2u, sums_b[2]);
    store(column, row + TILE_X_ROWS / 2u + 3u, sums_b[3]);
}
