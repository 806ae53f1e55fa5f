// y[r] = scale * table[tokens[r]]. Workgroup: MAX_BLOCK elements (x) of row y; rows whose token is in another slice are left
// alone. Bound by latency: a row is a few KB.

// 0: f32, 1: f16, 2: bf16, 3: product-quantized.
override FORMAT: u32;

@group(0) @binding(0) var<uniform> params: EmbedParams;
@group(0) @binding(1) var<uniform> weight: Weight;
@group(0) @binding(2) var<storage, read> tokens: array<u32>; // [rows]
@group(0) @binding(3) var<storage, read> words: array<u32>; // [weight.rows, weight.stride]
@group(0) @binding(4) var<storage, read> tables: array<u32>; // [codebooks, K, centroid words]
@group(0) @binding(5) var<storage, read> row_info: array<vec2<u32>>; // [weight.rows]: scale (f32), codebooks' first word
@group(0) @binding(6) var<storage, read_write> y: array<f32>; // [rows, dim]

fn element(n: u32, i: u32) -> f32 {
    let row = n * weight.stride;
    if (FORMAT == 0u) {
        return bitcast<f32>(words[row + i]);
    }
    if (FORMAT == 1u) {
        return unpack_f16(words[row + i / 2u])[i % 2u];
    }
    if (FORMAT == 2u) {
        return unpack_bf16(words[row + i / 2u])[i % 2u];
    }
    let j = i / D;
    let info = row_info[n];
    let c = centroid(info.y, j, code_at(row, j / weight.chunks, j % weight.chunks));
    let e = i % D;
    return bitcast<f32>(info.x) * centroid_pair(c, e / 2u)[e % 2u];
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let token = tokens[group.y];
    if (token < weight.first || token - weight.first >= weight.rows) {
        return;
    }
    let rotated = weight.rotate != 0u;
    let first = group.x * MAX_BLOCK;
    let count = min(MAX_BLOCK, params.dim - first);
    for (var i = ids.local; i < count; i += WORKGROUP) {
        block[i] = element(token - weight.first, first + i);
    }
    let scale = params.scale * rotate_block(ids.local, count, weight.rotate);
    for (var i = ids.local; i < count; i += WORKGROUP) {
        y[group.y * params.dim + first + i] = scale * block[i] * select(1.0, sign_of(first + i), rotated);
    }
}
