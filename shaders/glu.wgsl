// y = R(f(gate) * up), with SiLU or GELU as f. Workgroup: block x of row y. Bound by latency and the rotation's barriers.

@group(0) @binding(0) var<uniform> params: GluParams;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, 2 * dim]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [rows, dim]

// GELU as approximated by tanh, of which (1 + tanh(u)) / 2 is sigmoid(2 u).
fn activation(x: f32) -> f32 {
    if (params.gelu == 1u) {
        return x * sigmoid(1.5957691216 * (x + 0.044715 * x * x * x));
    }
    return silu(x);
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let rotated = params.rotate != 0u;
    let size = select(MAX_BLOCK, params.rotate, rotated);
    let first = group.x * size;
    let count = min(size, params.dim - first);
    let gate = 2u * group.y * params.dim + first;
    let up = gate + params.dim;
    for (var start = ids.local; start < count; start += 2u * WORKGROUP) {
        for (var k = 0u; k < 2u; k++) { // unroll 2
            let i = min(start + k * WORKGROUP, count - 1u);
            block[i] = activation(x[gate + i]) * x[up + i] * select(1.0, sign_of(first + i), rotated);
        }
    }
    let scale = rotate_block(ids.local, count, params.rotate);
    let row = group.y * params.dim + first;
    for (var i = ids.local; i < count; i += WORKGROUP) {
        y[row + i] = scale * block[i];
    }
}
