// rope_cache and attention in one, for rows of different slots (decode). Workgroup: HEADS query heads (x) of row y.
// The row's own key and value are made again by each workgroup that needs them; the one with a key head's first query
// head writes them to the cache. `qkv` stays as it is.

@group(0) @binding(0) var<uniform> rope: RopeCacheParams;
@group(0) @binding(1) var<uniform> params: AttentionParams;
@group(0) @binding(2) var<storage, read> qkv: array<f32>; // [rows, stride]
@group(0) @binding(3) var<storage, read> q_norm: array<f32>; // [head_dim]
@group(0) @binding(4) var<storage, read> k_norm: array<f32>; // [head_dim]
@group(0) @binding(5) var<storage, read> inv_freq: array<f32>; // [rotary_dim / 2]
@group(0) @binding(6) var<storage, read> rows: array<vec2<u32>>; // [rows]: slot, position
@group(0) @binding(7) var<storage, read_write> k_cache: array<f32>; // [slots, kv_heads, context, head_dim]
@group(0) @binding(8) var<storage, read_write> v_cache: array<f32>; // [slots, kv_heads, context, head_dim]
@group(0) @binding(9) var<storage, read_write> y: array<f32>; // [rows, heads * head_dim]

// The row's own key and value of the current key/value head.
var<workgroup> own_key: array<f32, HEAD_DIM>;
var<workgroup> own_value: array<f32, HEAD_DIM>;

fn load_queries(ids: Ids, row: u32, position: u32, first: u32, heads: u32, kv: u32) {
    for (var h = 0u; h < heads; h++) {
        load_head(ids, row * params.stride + (first + h) * params.q_stride, false);
        for (var e = ids.local; e < HEAD_DIM; e += WORKGROUP) {
            if (h == 0u) {
                queries[e] = vec4<f32>();
            }
            queries[e][h] = params.scale * turned(e, position);
        }
        workgroupBarrier();
    }
    let k = row * params.stride + rope.k_offset + kv * HEAD_DIM;
    let v = row * params.stride + rope.v_offset + kv * HEAD_DIM;
    load_head(ids, k, true);
    let writes = first == kv * (params.heads / params.kv_heads);
    let cached = ((rows[row].x * params.kv_heads + kv) * params.context + position) * HEAD_DIM;
    for (var e = ids.local; e < HEAD_DIM; e += WORKGROUP) {
        own_key[e] = turned(e, position);
        own_value[e] = qkv[v + e];
        if (writes) {
            k_cache[cached + e] = own_key[e];
            v_cache[cached + e] = own_value[e];
        }
    }
    workgroupBarrier();
}

// The cache has nothing yet for the row itself, but is read there as everywhere: a branch would make every read wait.

fn key(base: u32, p: u32, position: u32, e: u32) -> f32 {
    return select(k_cache[base + p * HEAD_DIM + e], own_key[e], p == position);
}

fn value(base: u32, p: u32, position: u32, e: u32) -> f32 {
    return select(v_cache[base + p * HEAD_DIM + e], own_value[e], p == position);
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let place = rows[group.y];
    attend(ids, group, group.y, place.x, place.y);
}
