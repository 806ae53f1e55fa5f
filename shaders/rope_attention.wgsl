// rope_cache and attention in one, for rows of different slots (decode). Workgroup: HEADS query heads (x) of row y; see
// attend.wgsl. Each workgroup that needs the row's own key and value computes them; the one with a key head's first
// query head writes them to the cache. `qkv` stays as it is.

@group(0) @binding(0) var<uniform> rope: RopeCacheParams;
@group(0) @binding(1) var<uniform> params: AttentionParams;
@group(0) @binding(2) var<storage, read> qkv: array<f32>; // [rows, stride]
@group(0) @binding(3) var<storage, read> q_norm: array<f32>; // [head_dim]
@group(0) @binding(4) var<storage, read> k_norm: array<f32>; // [head_dim]
@group(0) @binding(5) var<storage, read> inv_freq: array<f32>; // [rotary_dim / 2]
@group(0) @binding(6) var<storage, read> rows: array<vec2<u32>>; // [rows]: slot, position
@group(0) @binding(7) var<storage, read_write> k_cache: array<Piece>; // [slots, kv_heads, context, pieces]
@group(0) @binding(8) var<storage, read_write> v_cache: array<Piece>; // [slots, kv_heads, context, pieces]
@group(0) @binding(9) var<storage, read_write> y: array<f32>; // [rows, heads * head_dim]

// The row's own key and value of the current key/value head.
var<workgroup> own_key: array<Piece, PIECES>;
var<workgroup> own_value: array<Piece, PIECES>;

fn load_queries(ids: Ids, row: u32, position: u32, first: u32, heads: u32, kv: u32) {
    let at = row * params.stride;
    for (var i = ids.local; i < (heads + 1u) * HEAD_DIM; i += WORKGROUP) {
        let h = i / HEAD_DIM;
        let start = select((first + h) * params.q_stride, rope.k_offset + kv * HEAD_DIM, h == heads);
        head[i] = qkv[at + start + i % HEAD_DIM];
    }
    norm_and_rope(ids.local, heads + 1u, heads, position);
    let scale = params.scale * query_scale(position);
    let writes = first == kv * (params.heads / params.kv_heads);
    let cached = cache_at(CacheShape(params.kv_heads, params.context, PIECES), rows[row].x, kv, position);
    for (var e = ids.local; e < PIECES; e += WORKGROUP) {
        var q = Heads();
        var k = Piece();
        var v = Piece();
        for (var j = 0u; j < PIECE; j++) {
            for (var h = 0u; h < heads; h++) {
                set_head(&q, j, h, scale * head[h * HEAD_DIM + e * PIECE + j]);
            }
            set_element(&k, j, head[heads * HEAD_DIM + e * PIECE + j]);
            set_element(&v, j, qkv[at + rope.v_offset + kv * HEAD_DIM + e * PIECE + j]);
        }
        queries[e] = q;
        own_key[e] = k;
        own_value[e] = v;
        if (writes) {
            k_cache[cached + e] = k;
            v_cache[cached + e] = v;
        }
    }
    workgroupBarrier();
}

// The cache does not hold the row's own key yet, but is read there as everywhere: a branch would make every read wait.
fn key(at: u32, e: u32, own: bool) -> Piece {
    return select(k_cache[at + e], own_key[e], own);
}

fn value(at: u32, e: u32, own: bool) -> Piece {
    return select(v_cache[at + e], own_value[e], own);
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    attend(ids, group, group.y, rows[group.y].x, rows[group.y].y);
}
