// y = W x (+ bias) (+ y) for product-quantized W and many rows of x: a tile of W is decoded into workgroup memory and
// multiplied there. Workgroup: TILE rows of W (x) times TILE rows of x (y), 4 x 4 of them in each invocation. A step
// decodes one code each of STREAMS streams of TILE rows: STREAMS * D columns.

const TILE = 64u;
// Columns of a step at most.
const DEPTH = 16u;
// Streams of a step, at most DEPTH / D.
override STREAMS: u32;
override HAS_BIAS: bool;

@group(0) @binding(0) var<uniform> params: LinearParams;
@group(0) @binding(1) var<uniform> weight: Weight;
@group(0) @binding(2) var<storage, read> x: array<f32>; // [rows, weight.cols]
@group(0) @binding(3) var<storage, read> words: array<u32>; // [weight.rows, weight.stride]
@group(0) @binding(4) var<storage, read> tables: array<u32>; // [codebooks, K, centroid words]
@group(0) @binding(5) var<storage, read> places: array<vec2<u32>>; // [weight.rows]: scale (f32), codebooks' first word
@group(0) @binding(6) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(7) var<storage, read_write> y: array<f32>; // [rows, y_stride]

// [DEPTH, TILE]: columns of the step.
var<workgroup> w_tile: array<f32, DEPTH * TILE>;
var<workgroup> x_tile: array<f32, DEPTH * TILE>;

@compute @workgroup_size(256)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let n = group.x * TILE;
    let r = group.y * TILE;
    if (TABLE > 1u) {
        load_table(ids.local, places[n].y);
        workgroupBarrier();
    }
    let across = (ids.local % 16u) * 4u;
    let down = (ids.local / 16u) * 4u;
    // sums[i]: row r + down + i of x times rows n + across.. of W.
    var dots: mat4x4<f32>;
    for (var start = 0u; start < weight.chunks; start += STREAMS) {
        // The invocation's streams: numbers local, local + WORKGROUP, ... of STREAMS of TILE rows.
        var left: array<u32, 4>;
        var have = 0u;
        var word = 0u;
        for (var i = 0u; i < 32u; i++) {
            let refill = have < BITS;
            for (var s = 0u; s < 4u; s++) {
                let stream = ids.local + s * WORKGROUP;
                if (stream < STREAMS * TILE) {
                    let c = start + stream % STREAMS;
                    let row = min(n + stream / STREAMS, weight.rows - 1u);
                    var code = left[s] & code_mask();
                    if (refill) {
                        let at = row * weight.stride + word * weight.chunks + min(c, weight.chunks - 1u);
                        let next = words[at];
                        code = (left[s] | (next << have)) & code_mask();
                        left[s] = next >> (BITS - have);
                    } else {
                        left[s] >>= BITS;
                    }
                    let j = i * weight.chunks + c;
                    let place = places[row];
                    let at = centroid(place.y, weight.group, min(j, (weight.cols - 1u) / D), code, ids.local);
                    for (var e = 0u; e < centroid_words(); e++) {
                        let v = centroid_pair(at, e);
                        let depth = (stream % STREAMS) * D + 2u * e;
                        w_tile[depth * TILE + stream / STREAMS] = v.x;
                        if (2u * e + 1u < D) {
                            w_tile[(depth + 1u) * TILE + stream / STREAMS] = v.y;
                        }
                    }
                }
            }
            if (refill) {
                word += 1u;
                have += 32u - BITS;
            } else {
                have -= BITS;
            }
            let columns = STREAMS * D;
            let first = (i * weight.chunks + start) * D;
            // Streams past the last one, and columns past the last, multiply zeros.
            let valid = min(min(STREAMS, weight.chunks - start) * D, max(first, weight.cols) - first);
            for (var at = ids.local; at < columns * TILE; at += WORKGROUP) {
                let depth = at % columns;
                let row = at / columns;
                var v = 0.0;
                if (depth < valid && r + row < params.rows) {
                    v = x[(r + row) * weight.cols + first + depth];
                }
                x_tile[depth * TILE + row] = v;
            }
            workgroupBarrier();
            for (var depth = 0u; depth < columns; depth++) {
                let a = depth * TILE + across;
                let d = depth * TILE + down;
                let w4 = vec4<f32>(w_tile[a], w_tile[a + 1u], w_tile[a + 2u], w_tile[a + 3u]);
                dots[0] += w4 * x_tile[d];
                dots[1] += w4 * x_tile[d + 1u];
                dots[2] += w4 * x_tile[d + 2u];
                dots[3] += w4 * x_tile[d + 3u];
            }
            workgroupBarrier();
        }
    }
    for (var i = 0u; i < 4u; i++) {
        for (var j = 0u; j < 4u; j++) {
            let local_row = n + across + j;
            if (local_row < weight.rows && r + down + i < params.rows) {
                let at = weight.first + local_row;
                var v = bitcast<f32>(places[local_row].x) * dots[i][j];
                if (HAS_BIAS) {
                    v += bias[at];
                }
                let out = (r + down + i) * params.y_stride + params.y_offset + at;
                y[out] = v + select(0.0, y[out], params.accumulate != 0u);
            }
        }
    }
}
