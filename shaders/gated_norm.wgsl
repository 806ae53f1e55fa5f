// y = R(weight * x / sqrt(mean(x^2) + eps) * silu(gate)), the mean over each head. Workgroup: block x of row y, where
// a block is the rotation's, or one head without rotation. A block may hold several heads, or parts of heads. Bound by
// latency and barriers.

@group(0) @binding(0) var<uniform> params: GatedNormParams;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, heads * dim]
@group(0) @binding(2) var<storage, read> gate: array<f32>; // [rows, stride]
@group(0) @binding(3) var<storage, read> weight: array<f32>; // [dim]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [rows, heads * dim]

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let rotated = params.rotate != 0u;
    let size = select(params.dim, params.rotate, rotated);
    let row = group.y * params.heads * params.dim;
    let gates = group.y * params.stride + params.offset;
    let first = group.x * size;
    let end = first + size;

    for (var head = first / params.dim; head * params.dim < end; head++) {
        let start = head * params.dim;
        var squares = 0.0;
        for (var i = ids.local; i < params.dim; i += WORKGROUP) {
            squares += x[row + start + i] * x[row + start + i];
        }
        let norm = 1.0 / sqrt(workgroup_sum(ids, squares) / f32(params.dim) + params.eps);
        for (var i = max(first, start) + ids.local; i < min(end, start + params.dim); i += WORKGROUP) {
            let v = weight[i - start] * (x[row + i] * norm) * silu(gate[gates + i]);
            if (rotated) {
                block[i - first] = v * sign_of(i);
            } else {
                y[row + i] = v;
            }
        }
    }
    if (rotated) {
        let scale = rotate_block(ids.local, size, params.rotate);
        for (var i = ids.local; i < size; i += WORKGROUP) {
            y[row + first + i] = scale * block[i];
        }
    }
}
