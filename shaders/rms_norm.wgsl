// y = (residual +) R((weight + weight_offset) * x / sqrt(mean(x^2) + eps)). Workgroup: block x of row y; each sums the whole row
// itself, so that the blocks of a lone row are rotated side by side. Bound by latency: a row is a few KB.

override HAS_RESIDUAL: bool;

@group(0) @binding(0) var<uniform> params: RmsNormParams;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, dim]
@group(0) @binding(2) var<storage, read> weight: array<f32>; // [dim]
@group(0) @binding(3) var<storage, read> residual: array<f32>; // [rows, dim]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [rows, dim]

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let row = group.y * params.dim;
    var squares = 0.0;
    for (var start = ids.local; start < params.dim; start += 8u * WORKGROUP) {
        for (var k = 0u; k < 8u; k++) { // unroll 8
            let i = start + k * WORKGROUP;
            let v = select(0.0, x[row + min(i, params.dim - 1u)], i < params.dim);
            squares += v * v;
        }
    }
    let mean = workgroup_sum(ids, squares) / f32(params.dim);
    let norm = 1.0 / sqrt(mean + params.eps);

    let rotated = params.rotate != 0u;
    let size = select(MAX_BLOCK, params.rotate, rotated);
    let first = group.x * size;
    let count = min(size, params.dim - first);
    for (var i = ids.local; i < count; i += WORKGROUP) {
        let v = (weight[first + i] + params.weight_offset) * (x[row + first + i] * norm);
        block[i] = v * select(1.0, sign_of(first + i), rotated);
    }
    let scale = rotate_block(ids.local, count, params.rotate);
    for (var i = ids.local; i < count; i += WORKGROUP) {
        var v = scale * block[i];
        if (HAS_RESIDUAL) {
            v += residual[row + first + i];
        }
        y[row + first + i] = v;
    }
}
