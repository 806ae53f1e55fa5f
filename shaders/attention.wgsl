// Causal softmax attention over the cache, for prompts. Workgroup: HEADS query heads (x) of row y. See attend.wgsl.

@group(0) @binding(0) var<uniform> params: AttentionParams;
@group(0) @binding(1) var<storage, read> qkv: array<f32>; // [rows, stride]
@group(0) @binding(2) var<storage, read> k_cache: array<Piece>; // [slots, kv_heads, context, pieces]
@group(0) @binding(3) var<storage, read> v_cache: array<Piece>; // [slots, kv_heads, context, pieces]
@group(0) @binding(4) var<storage, read> rows: array<vec2<u32>>; // [rows]: slot, position
@group(0) @binding(5) var<storage, read_write> y: array<f32>; // [rows, heads * head_dim]

fn load_queries(ids: Ids, row: u32, position: u32, first: u32, heads: u32, kv: u32) {
    for (var e = ids.local; e < PIECES; e += WORKGROUP) {
        var q = Heads();
        for (var h = 0u; h < heads; h++) {
            let at = row * params.stride + (first + h) * params.q_stride + e * PIECE;
            for (var j = 0u; j < PIECE; j++) {
                set_head(&q, j, h, params.scale * qkv[at + j]);
            }
        }
        queries[e] = q;
    }
    workgroupBarrier();
}

fn key(at: u32, e: u32, own: bool) -> Piece {
    return k_cache[at + e];
}

fn value(at: u32, e: u32, own: bool) -> Piece {
    return v_cache[at + e];
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    attend(ids, group, group.y, rows[group.y].x, rows[group.y].y);
}
