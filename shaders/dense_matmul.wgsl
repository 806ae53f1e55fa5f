// y = W x (+ bias) (+ y) for dense W. Workgroup: DENSE_W_ROWS * GROUPS rows of W (x) times DENSE_X_ROWS rows of x (y).
// DENSE_LANES invocations share DENSE_W_ROWS rows of W: each multiplies every DENSE_LANES-th pair of columns. For few
// rows of x, bound by reading W.

// Rows are components of a vector.
const_assert DENSE_W_ROWS == 4u && DENSE_X_ROWS == 4u;

const GROUPS = WORKGROUP / DENSE_LANES;

// 0: f32, 1: f16, 2: bf16.
override FORMAT: u32;
override HAS_BIAS: bool;

@group(0) @binding(0) var<uniform> params: LinearParams;
@group(0) @binding(1) var<uniform> weight: Weight;
@group(0) @binding(2) var<storage, read> x: array<f32>; // [rows, weight.cols]
@group(0) @binding(3) var<storage, read> words: array<u32>; // [weight.rows, weight.stride]
@group(0) @binding(4) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(5) var<storage, read_write> y: array<f32>; // [rows, y_stride]

var<workgroup> sums4: array<vec4<f32>, WORKGROUP>;

// Columns 2i and 2i + 1 of row n.
fn pair(n: u32, i: u32) -> vec2<f32> {
    let row = min(n, weight.rows - 1u) * weight.stride;
    if (FORMAT == 0u) {
        let last = 2u * i + 1u < weight.cols;
        return vec2<f32>(
            bitcast<f32>(words[row + 2u * i]),
            select(0.0, bitcast<f32>(words[row + 2u * i + select(0u, 1u, last)]), last),
        );
    }
    if (FORMAT == 1u) {
        return unpack_f16(words[row + i]);
    }
    return unpack_bf16(words[row + i]);
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = ids.local % DENSE_LANES;
    let n = (group.x * GROUPS + ids.local / DENSE_LANES) * DENSE_W_ROWS;
    let r = group.y * DENSE_X_ROWS;
    // dots[i]: row r + i of x times the four rows of W.
    var dots: mat4x4<f32>;
    for (var i = lane; 2u * i < weight.cols; i += DENSE_LANES) {
        let a = pair(n, i);
        let b = pair(n + 1u, i);
        let c = pair(n + 2u, i);
        let d = pair(n + 3u, i);
        let even = vec4<f32>(a.x, b.x, c.x, d.x);
        let odd = vec4<f32>(a.y, b.y, c.y, d.y);
        let odd_column = min(2u * i + 1u, weight.cols - 1u);
        for (var j = 0u; j < DENSE_X_ROWS; j++) {
            let row = min(r + j, params.rows - 1u) * weight.cols;
            dots[j] += even * x[row + 2u * i] + odd * x[row + odd_column];
        }
    }
    for (var j = 0u; j < min(DENSE_X_ROWS, params.rows - r); j++) {
        sums4[ids.local] = dots[j];
        for (var half = DENSE_LANES / 2u; half > 0u; half >>= 1u) {
            workgroupBarrier();
            if (lane < half) {
                sums4[ids.local] += sums4[ids.local + half];
            }
        }
        workgroupBarrier();
        if (lane < DENSE_W_ROWS && n + lane < weight.rows) {
            let at = weight.first + n + lane;
            var v = sums4[ids.local - lane][lane];
            if (HAS_BIAS) {
                v += bias[at];
            }
            let out = (r + j) * params.y_stride + params.y_offset + at;
            y[out] = v + select(0.0, y[out], params.accumulate != 0u);
        }
        workgroupBarrier();
    }
}
