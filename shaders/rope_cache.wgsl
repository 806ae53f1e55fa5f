// Query and key norms, rotary position embedding, and the write to the cache. Workgroup: head x of row y, where the
// key heads follow the query heads, and the value heads those.

@group(0) @binding(0) var<uniform> rope: RopeCacheParams;
@group(0) @binding(1) var<storage, read_write> qkv: array<f32>; // [rows, stride]
@group(0) @binding(2) var<storage, read> q_norm: array<f32>; // [head_dim]
@group(0) @binding(3) var<storage, read> k_norm: array<f32>; // [head_dim]
@group(0) @binding(4) var<storage, read> inv_freq: array<f32>; // [rotary_dim / 2]
@group(0) @binding(5) var<storage, read> rows: array<vec2<u32>>; // [rows]: slot, position
@group(0) @binding(6) var<storage, read_write> k_cache: array<f32>; // [slots, kv_heads, context, head_dim]
@group(0) @binding(7) var<storage, read_write> v_cache: array<f32>; // [slots, kv_heads, context, head_dim]

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let row = group.y * rope.stride;
    let place = rows[group.y];
    if (group.x < rope.heads) {
        let at = row + group.x * rope.q_stride;
        load_head(ids, at, false);
        for (var i = ids.local; i < rope.head_dim; i += WORKGROUP) {
            qkv[at + i] = turned(i, place.y);
        }
        return;
    }
    let kv = (group.x - rope.heads) % rope.kv_heads;
    let cached = ((place.x * rope.kv_heads + kv) * rope.context + place.y) * rope.head_dim;
    if (group.x < rope.heads + rope.kv_heads) {
        load_head(ids, row + rope.k_offset + kv * rope.head_dim, true);
        for (var i = ids.local; i < rope.head_dim; i += WORKGROUP) {
            k_cache[cached + i] = turned(i, place.y);
        }
        return;
    }
    for (var i = ids.local; i < rope.head_dim; i += WORKGROUP) {
        v_cache[cached + i] = qkv[row + rope.v_offset + kv * rope.head_dim + i];
    }
}
