// y = W x (+ bias) (+ y) for product-quantized W and few rows of x: codes are read once, centroids looked up and
// multiplied. Workgroup: TILES times 4 * WORKGROUP / LANES rows of W (x) times row y of x. LANES invocations split the
// columns of 4 rows of W: each takes every LANES-th stream of codes.

// A power of two up to 256.
override LANES: u32;
// Tiles of a workgroup, so that its table serves more rows.
override TILES: u32;
// Whether codes or columns are missing at the end of the last streams.
override RAGGED: bool;
override HAS_BIAS: bool;

@group(0) @binding(0) var<uniform> params: LinearParams;
@group(0) @binding(1) var<uniform> weight: Weight;
@group(0) @binding(2) var<storage, read> x: array<f32>; // [rows, weight.cols]
@group(0) @binding(3) var<storage, read> words: array<u32>; // [weight.rows, weight.stride]
@group(0) @binding(4) var<storage, read> tables: array<u32>; // [codebooks, K, centroid words]
@group(0) @binding(5) var<storage, read> places: array<vec2<u32>>; // [weight.rows]: scale (f32), codebooks' first word
@group(0) @binding(6) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(7) var<storage, read_write> y: array<f32>; // [rows, y_stride]

var<workgroup> sums4: array<vec4<f32>, WORKGROUP>;

// The product of four rows' codes of subspace j with x.
fn product(code: vec4<u32>, base: vec4<u32>, j: u32, row: u32, local: u32) -> vec4<f32> {
    let at = vec4<u32>(
        centroid(base.x, weight.group, j, code.x, local),
        centroid(base.y, weight.group, j, code.y, local),
        centroid(base.z, weight.group, j, code.z, local),
        centroid(base.w, weight.group, j, code.w, local),
    );
    var dot4 = vec4<f32>();
    for (var i = 0u; i < centroid_words(); i++) {
        let a = centroid_pair(at.x, i);
        let b = centroid_pair(at.y, i);
        let c = centroid_pair(at.z, i);
        let d = centroid_pair(at.w, i);
        let column = j * D + 2u * i;
        if (!RAGGED || column < weight.cols) {
            dot4 += vec4<f32>(a.x, b.x, c.x, d.x) * x[row + column];
        }
        if (2u * i + 1u < D && (!RAGGED || column + 1u < weight.cols)) {
            dot4 += vec4<f32>(a.y, b.y, c.y, d.y) * x[row + column + 1u];
        }
    }
    return dot4;
}

@compute @workgroup_size(256)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = ids.local % LANES;
    let row = group.y * weight.cols;
    let tile = 4u * (WORKGROUP / LANES);
    if (TABLE > 1u) {
        load_table(ids.local, places[group.x * TILES * tile].y);
        workgroupBarrier();
    }
    for (var t = 0u; t < TILES; t++) {
        let n = (group.x * TILES + t) * tile + ids.local / LANES * 4u;
        let rows = min(vec4<u32>(n, n + 1u, n + 2u, n + 3u), vec4<u32>(weight.rows - 1u));
        let base = vec4<u32>(places[rows.x].y, places[rows.y].y, places[rows.z].y, places[rows.w].y);
        var dots = vec4<f32>();
        for (var c = lane; c < weight.chunks; c += LANES) {
            var at = rows * weight.stride + c;
            // The `have` bits of the last words that no code has taken yet.
            var left = vec4<u32>();
            var have = 0u;
            for (var i = 0u; i < 32u; i++) {
                var code = left & vec4<u32>(code_mask());
                if (have < BITS) {
                    let next = vec4<u32>(words[at.x], words[at.y], words[at.z], words[at.w]);
                    at += weight.chunks;
                    code = (left | (next << vec4<u32>(have))) & vec4<u32>(code_mask());
                    left = next >> vec4<u32>(BITS - have);
                    have += 32u - BITS;
                } else {
                    left >>= vec4<u32>(BITS);
                    have -= BITS;
                }
                dots += product(code, base, i * weight.chunks + c, row, ids.local);
            }
        }
        sums4[ids.local] = dots;
        for (var half = LANES / 2u; half > 0u; half >>= 1u) {
            workgroupBarrier();
            if (lane < half) {
                sums4[ids.local] += sums4[ids.local + half];
            }
        }
        workgroupBarrier();
        if (ids.local < tile) {
            let local_row = (group.x * TILES + t) * tile + ids.local;
            if (local_row < weight.rows) {
                let at = weight.first + local_row;
                var v = bitcast<f32>(places[local_row].x) * sums4[ids.local / 4u * LANES][ids.local % 4u];
                if (HAS_BIAS) {
                    v += bias[at];
                }
                let out = group.y * params.y_stride + params.y_offset + at;
                y[out] = v + select(0.0, y[out], params.accumulate != 0u);
            }
        }
        workgroupBarrier();
    }
}
