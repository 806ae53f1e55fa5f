// (weight + weight_offset) * x / sqrt(mean(x^2) + eps) of all query heads of row y (workgroup x = 0) or all its key heads
// (x = 1), in place. Bound by latency: a row is a few KB.

@group(0) @binding(0) var<uniform> params: QkNormParams;
@group(0) @binding(1) var<storage, read_write> qkv: array<f32>; // [rows, stride]
@group(0) @binding(2) var<storage, read> q_norm: array<f32>; // [q_dim]
@group(0) @binding(3) var<storage, read> k_norm: array<f32>; // [k_dim]

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let keys = group.x == 1u;
    let first = group.y * params.stride + select(0u, params.k_offset, keys);
    let count = select(params.q_dim, params.k_dim, keys);
    var squares = 0.0;
    for (var i = ids.local; i < count; i += WORKGROUP) {
        let v = qkv[first + i];
        squares += v * v;
    }
    let norm = 1.0 / sqrt(workgroup_sum(ids, squares) / f32(count) + params.eps);
    for (var i = ids.local; i < count; i += WORKGROUP) {
        var weight = 0.0;
        if (keys) {
            weight = k_norm[i];
        } else {
            weight = q_norm[i];
        }
        qkv[first + i] = (weight + params.weight_offset) * (qkv[first + i] * norm);
    }
}
