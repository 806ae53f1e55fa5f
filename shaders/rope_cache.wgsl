// Query and key norms, rotary position embedding, and the write to the cache, for prompts. Workgroup: head x of row y,
// where the key heads follow the query heads, and the value heads those. Bound by the latency of one head's chain of
// steps; rows of a prompt hide it.

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
    let slot = rows[group.y].x;
    let position = rows[group.y].y;
    let kv = (group.x - rope.heads) % rope.kv_heads;
    let cached = cache_at(CacheShape(rope.kv_heads, rope.context, rope.head_dim), slot, kv, position);
    if (group.x >= rope.heads + rope.kv_heads) {
        for (var i = ids.local; i < rope.head_dim; i += WORKGROUP) {
            v_cache[cached + i] = qkv[row + rope.v_offset + kv * rope.head_dim + i];
        }
        return;
    }
    let is_key = group.x >= rope.heads;
    let at = row + select(group.x * rope.q_stride, rope.k_offset + kv * rope.head_dim, is_key);
    for (var i = ids.local; i < rope.head_dim; i += WORKGROUP) {
        head[i] = qkv[at + i];
    }
    norm_and_rope(ids.local, 1u, select(1u, 0u, is_key), position);
    let grown = query_scale(position);
    for (var i = ids.local; i < rope.head_dim; i += WORKGROUP) {
        if (is_key) {
            k_cache[cached + i] = head[i];
        } else {
            qkv[at + i] = grown * head[i];
        }
    }
}
