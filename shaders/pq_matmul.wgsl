// y = W x (+ bias) (+ y) for product-quantized W and many rows of x: a tile of W is decoded into workgroup memory and
// multiplied there. Workgroup: W_TILE rows of W (x) times X_TILE rows of x (y), 4 times 4 + 4 of them in each
// invocation. A step decodes one code each of STREAMS streams of W_TILE rows: STREAMS * D columns.
//
// Decoding a weight costs as much as multiplying it 20 times, so a decoded tile meets 128 rows of x. Tiles are read
// four elements at a time, and their columns padded so that writing them meets few banks twice.

const W_TILE = 64u;
const X_TILE = 128u;
// Columns of a step at most.
const DEPTH = 16u;
// Vectors from one column of a tile to the next.
const W_STRIDE = W_TILE / 4u + 1u;
const X_STRIDE = X_TILE / 4u + 1u;
// Streams of a step, at most DEPTH / D.
override STREAMS: u32;

// [DEPTH, rows / 4]: columns of the step.
var<workgroup> w_tile: array<vec4<f32>, DEPTH * W_STRIDE>;
var<workgroup> x_tile: array<vec4<f32>, DEPTH * X_STRIDE>;

// The code of number `at` of the step's STREAMS * W_TILE: of step `i` in the streams from `start` on.
fn step_code(n: u32, start: u32, i: u32, at: u32) -> u32 {
    let row = min(n + at / STREAMS, weight.rows - 1u);
    let c = min(start + at % STREAMS, weight.chunks - 1u);
    return code_at(row * weight.stride, i, c);
}

fn decode(n: u32, start: u32, i: u32, at: u32, code: u32) {
    let row = at / STREAMS;
    let j = min(i * weight.chunks + start + at % STREAMS, (weight.cols - 1u) / D);
    let base = places[min(n + row, weight.rows - 1u)].y;
    let place = centroid(base, j, code);
    for (var e = 0u; e < centroid_words(); e++) {
        let v = centroid_pair(place, e);
        let depth = (at % STREAMS) * D + 2u * e;
        w_tile[depth * W_STRIDE + row / 4u][row % 4u] = v.x;
        if (2u * e + 1u < D) {
            w_tile[(depth + 1u) * W_STRIDE + row / 4u][row % 4u] = v.y;
        }
    }
}

// Element number `at` of the step's columns from `first` on, of which `valid` are there, of the rows from r on.
fn step_x(r: u32, first: u32, valid: u32, at: u32) -> f32 {
    let depth = at % (STREAMS * D);
    let row = r + at / (STREAMS * D);
    let there = depth < valid && row < params.rows;
    return select(0.0, x[select(0u, row * weight.cols + first + depth, there)], there);
}

// Writes the products of a row of x with the rows of W from n on.
fn store(n: u32, row: u32, dots: vec4<f32>) {
    for (var j = 0u; j < min(4u, max(n, weight.rows) - n) && row < params.rows; j++) {
        let at = weight.first + n + j;
        var v = bitcast<f32>(places[n + j].x) * dots[j];
        if (HAS_BIAS) {
            v += bias[at];
        }
        let out = row * params.y_stride + params.y_offset + at;
        y[out] = v + select(0.0, y[out], params.accumulate != 0u);
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let n = group.x * W_TILE;
    let r = group.y * X_TILE;
    if (SHARED) {
        load_table(ids.local, places[n].y);
    }
    let across = ids.local % 16u;
    let down = ids.local / 16u;
    let columns = STREAMS * D;
    let codes = STREAMS * W_TILE;
    // Whether there are more rows than the first half of the tile.
    let both = r + X_TILE / 2u < params.rows;
    let values = columns * select(X_TILE / 2u, X_TILE, both);
    // Four rows of W times rows 4 * down.. of x, and times those half a tile further.
    var near: mat4x4<f32>;
    var far: mat4x4<f32>;
    for (var start = 0u; start < weight.chunks; start += STREAMS) {
        for (var i = 0u; i < 32u; i++) {
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
                near[0] += w4 * a.x;
                near[1] += w4 * a.y;
                near[2] += w4 * a.z;
                near[3] += w4 * a.w;
                if (both) {
                    let b = x_tile[depth * X_STRIDE + X_TILE / 8u + down];
                    far[0] += w4 * b.x;
                    far[1] += w4 * b.y;
                    far[2] += w4 * b.z;
                    far[3] += w4 * b.w;
                }
            }
        }
    }
    let column = n + 4u * across;
    let row = r + 4u * down;
    store(column, row, near[0]);
    store(column, row + 1u, near[1]);
    store(column, row + 2u, near[2]);
    store(column, row + 3u, near[3]);
    store(column, row + X_TILE / 2u, far[0]);
    store(column, row + X_TILE / 2u + 1u, far[1]);
    store(column, row + X_TILE / 2u + 2u, far[2]);
    store(column, row + X_TILE / 2u + 3u, far[3]);
}
