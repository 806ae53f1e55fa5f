// Causal softmax attention of HEADS neighbouring query heads of one row, in one workgroup: a running maximum over
// tiles of positions, up to four query heads of one key/value head at a time. The kernels that use this have
// `load_queries`, and `key` and `value`, which read piece e of the head at index `at` of the cache, or the row's own;
// piece4.wgsl or piece1.wgsl says how many elements a piece is.
//
// Bound by latency: one row has few heads, so a workgroup is a chain of reads from the cache, and only many reads at
// once shorten it. An invocation reads two positions' keys, or four positions' values, side by side.

// An invocation has a piece of the output.
const_assert MAX_HEAD_DIM <= WORKGROUP;

// Of `params`; constants, because the loops over them are the hottest.
override HEAD_DIM: u32;
override HEADS: u32;
// HEAD_DIM / PIECE.
override PIECES: u32;

// Invocations that share a position's dot product.
const LANES = 8u;
// Positions whose dot products are made at a time.
const ABREAST = WORKGROUP / LANES;
// Positions of a tile.
const TILE = 2u * ABREAST;
const LOWEST = -3.0e38;

// Four query heads, times `scale`.
var<workgroup> queries: array<Heads, PIECES>;
var<workgroup> scores: array<vec4<f32>, TILE>;
var<workgroup> parts: array<vec4<f32>, WORKGROUP>;

// `scores` of positions `first..` of the tile, from the parts that their LANES invocations have.
fn gather_scores(local: u32, first: u32, part: vec4<f32>) {
    parts[local] = part;
    workgroupBarrier();
    if (local < ABREAST) {
        var sum = vec4<f32>();
        for (var i = 0u; i < LANES; i++) {
            sum += parts[local * LANES + (local + i) % LANES];
        }
        scores[first + local] = sum;
    }
    workgroupBarrier();
}

// The sum of a piece's values over its splits, for the invocations of the first.
fn over_splits(local: u32, splits: u32, value: vec4<f32>) -> vec4<f32> {
    parts[local] = value;
    workgroupBarrier();
    let split = local / PIECES;
    var sum = vec4<f32>();
    if (split < 8u) {
        for (var s = split; s < splits; s += 8u) {
            sum += parts[s * PIECES + local % PIECES];
        }
    }
    workgroupBarrier();
    parts[local] = sum;
    workgroupBarrier();
    sum = vec4<f32>();
    if (split == 0u) {
        for (var s = 0u; s < min(8u, splits); s++) {
            sum += parts[s * PIECES + local];
        }
    }
    workgroupBarrier();
    return sum;
}

// The attention of one row.
fn attend(ids: Ids, group: vec3<u32>, row: u32, slot: u32, position: u32) {
    let per_kv = params.heads / params.kv_heads;
    let first = group.x * HEADS;
    let cache = CacheShape(params.kv_heads, params.context, PIECES);
    // Output: a piece of each head, over every `splits`-th position.
    let piece = ids.local % PIECES;
    let split = ids.local / PIECES;
    let splits = WORKGROUP / PIECES;
    let first_seen = select(0u, position + 1u - params.window, params.window != 0u && position >= params.window);

    for (var done = 0u; done < HEADS;) {
        let kv = (first + done) / per_kv;
        let heads = min(min(4u, HEADS - done), (kv + 1u) * per_kv - first - done);
        load_queries(ids, row, position, first + done, heads, kv);

        var highest = vec4<f32>(LOWEST);
        var sum4 = vec4<f32>();
        var out = Heads();
        for (var start = first_seen; start <= position; start += TILE) {
            let count = min(TILE, position + 1u - start);
            // An invocation's two positions: one in each half of the tile. Past the last one, that key is read again.
            let i = ids.local / LANES;
            let a = start + i;
            let b = start + min(i + ABREAST, count - 1u);
            let at_a = cache_at(cache, slot, kv, a);
            let at_b = cache_at(cache, slot, kv, b);
            var dots_a = vec4<f32>();
            var dots_b = vec4<f32>();
            if (i < count) {
                for (var first_e = ids.local % LANES; first_e < PIECES; first_e += 4u * LANES) {
                    for (var k = 0u; k < 4u; k++) { // unroll 4
                        let e = first_e + k * LANES;
                        if (PIECES % (4u * LANES) == 0u || e < PIECES) {
                            dots_a += queries[e] * key(at_a, e, a == position);
                            dots_b += queries[e] * key(at_b, e, b == position);
                        }
                    }
                }
            }
            gather_scores(ids.local, 0u, dots_a);
            gather_scores(ids.local, ABREAST, dots_b);

            var top = vec4<f32>(LOWEST);
            for (var i = ids.local % 16u; i < count; i += 16u) {
                top = max(top, scores[i]);
            }
            parts[ids.local] = top;
            workgroupBarrier();
            for (var l = 0u; l < 16u; l++) {
                top = max(top, parts[l]);
            }
            let higher = max(highest, top);
            let shrink = exp(highest - higher);
            highest = higher;
            if (ids.local < TILE) {
                scores[ids.local] = select(vec4<f32>(), exp(scores[ids.local] - higher), ids.local < count);
            }
            workgroupBarrier();

            sum4 *= shrink;
            out = of_heads(shrink, out);
            if (split < splits) {
                for (var i = split; i < count; i += 4u * splits) {
                    // Past the last position: its value again, with the weight 0.
                    let at = vec4<u32>(i, i + splits, i + 2u * splits, i + 3u * splits);
                    let p = start + min(at, vec4<u32>(count - 1u));
                    let a = scores[i];
                    let b = weight_at(at.y);
                    let c = weight_at(at.z);
                    let d = weight_at(at.w);
                    sum4 += (a + b) + (c + d);
                    out += outer(a, value(cache_at(cache, slot, kv, p.x), piece, p.x == position))
                        + outer(b, value(cache_at(cache, slot, kv, p.y), piece, p.y == position));
                    out += outer(c, value(cache_at(cache, slot, kv, p.z), piece, p.z == position))
                        + outer(d, value(cache_at(cache, slot, kv, p.w), piece, p.w == position));
                }
            }
            workgroupBarrier();
        }

        let sum = over_splits(ids.local, splits, sum4);
        for (var j = 0u; j < PIECE; j++) {
            let total = over_splits(ids.local, splits, of_element(out, j)) / sum;
            if (split == 0u) {
                let element = piece * PIECE + j;
                for (var h = 0u; h < heads; h++) {
                    let head = first + done + h;
                    var v = total[h];
                    if (params.gated != 0u) {
                        v *= sigmoid(qkv[row * params.stride + head * params.q_stride + HEAD_DIM + element]);
                    }
                    let i = head * HEAD_DIM + element;
                    block[i - first * HEAD_DIM] = v * select(1.0, sign_of(i), params.rotate != 0u);
                }
            }
        }
        workgroupBarrier();
        done += heads;
    }

    let scale = rotate_block(ids.local, HEADS * HEAD_DIM, params.rotate);
    for (var i = ids.local; i < HEADS * HEAD_DIM; i += WORKGROUP) {
        y[(row * params.heads + first) * HEAD_DIM + i] = scale * block[i];
    }
}

// The weight of a position of the tile, 0 past its end.
fn weight_at(i: u32) -> vec4<f32> {
    return select(vec4<f32>(), scores[min(i, TILE - 1u)], i < TILE);
}
