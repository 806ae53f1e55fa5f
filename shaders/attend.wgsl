// Causal softmax attention of HEADS neighbouring query heads of one row, in one workgroup: a running maximum over
// tiles of positions, up to four query heads of one key/value head at a time. The kernels that use this have
// `load_queries`, `key` and `value`.
//
// One row has few heads, so the work of a workgroup is a chain of reads from the cache, and only many reads at once
// shorten it: an invocation reads two positions' keys, or four positions' values, side by side.

// Of `params`; a constant, because the loops over it are the hottest.
override HEAD_DIM: u32;
override HEADS: u32;

// Positions of a tile.
const TILE = 128u;
// Invocations that share a position's dot product.
const LANES = 4u;
// Positions whose dot products are made at a time.
const ABREAST = WORKGROUP / LANES;
const LOWEST = -3.0e38;

// Four query heads, times `scale`.
var<workgroup> queries: array<vec4<f32>, HEAD_DIM>;
// One more than the tile has, which is 0.
var<workgroup> scores: array<vec4<f32>, TILE + 1u>;
var<workgroup> parts: array<vec4<f32>, WORKGROUP>;

// `scores` of positions `first..` of the tile, from the parts that their LANES invocations have.
fn gather_scores(local: u32, first: u32, part: vec4<f32>) {
    parts[local] = part;
    workgroupBarrier();
    if (local < ABREAST) {
        let at = local * LANES;
        scores[first + local] = (parts[at] + parts[at + 1u]) + (parts[at + 2u] + parts[at + 3u]);
    }
    workgroupBarrier();
}

// The attention of one row.
fn attend(ids: Ids, group: vec3<u32>, row: u32, slot: u32, position: u32) {
    let per_kv = params.heads / params.kv_heads;
    let first = group.x * HEADS;
    // Output: element `element` of each head, over every SPLITS-th position.
    let element = ids.local % HEAD_DIM;
    let split = ids.local / HEAD_DIM;
    let splits = WORKGROUP / HEAD_DIM;

    for (var done = 0u; done < HEADS;) {
        let kv = (first + done) / per_kv;
        let heads = min(min(4u, HEADS - done), (kv + 1u) * per_kv - first - done);
        let base = (slot * params.kv_heads + kv) * params.context * HEAD_DIM;
        load_queries(ids, row, position, first + done, heads, kv);

        var highest = vec4<f32>(LOWEST);
        var sum4 = vec4<f32>();
        var out4 = vec4<f32>();
        for (var start = 0u; start <= position; start += TILE) {
            let count = min(TILE, position + 1u - start);
            let near = ids.local / LANES;
            // Past the last position, that one's key is read again.
            let far = start + min(near + ABREAST, count - 1u);
            var near4 = vec4<f32>();
            var far4 = vec4<f32>();
            if (near < count) {
                for (var e = ids.local % LANES; e < HEAD_DIM; e += LANES) {
                    near4 += queries[e] * key(base, start + near, position, e);
                    far4 += queries[e] * key(base, far, position, e);
                }
            }
            gather_scores(ids.local, 0u, near4);
            gather_scores(ids.local, ABREAST, far4);

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
            if (ids.local <= TILE) {
                scores[ids.local] = select(vec4<f32>(), exp(scores[ids.local] - higher), ids.local < count);
            }
            workgroupBarrier();

            sum4 *= shrink;
            out4 *= shrink;
            if (split < splits) {
                for (var i = split; i < count; i += 4u * splits) {
                    // Past the last position: its value again, with the weight 0 that the last score has.
                    let at = vec4<u32>(i, i + splits, i + 2u * splits, i + 3u * splits);
                    let place = start + min(at, vec4<u32>(count - 1u));
                    let weight = min(at, vec4<u32>(TILE));
                    let a = scores[weight.x];
                    let b = scores[weight.y];
                    let c = scores[weight.z];
                    let d = scores[weight.w];
                    sum4 += (a + b) + (c + d);
                    out4 += a * value(base, place.x, position, element) + b * value(base, place.y, position, element);
                    out4 += c * value(base, place.z, position, element) + d * value(base, place.w, position, element);
                }
            }
            workgroupBarrier();
        }

        parts[ids.local] = out4;
        workgroupBarrier();
        var total = vec4<f32>();
        if (split == 0u) {
            for (var s = 0u; s < splits; s++) {
                total += parts[s * HEAD_DIM + element];
            }
        }
        workgroupBarrier();
        parts[ids.local] = sum4;
        workgroupBarrier();
        if (split == 0u) {
            var sum = vec4<f32>();
            for (var s = 0u; s < splits; s++) {
                sum += parts[s * HEAD_DIM];
            }
            total /= sum;
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
        workgroupBarrier();
        done += heads;
    }

    let scale = rotate_block(ids.local, HEADS * HEAD_DIM, params.rotate);
    for (var i = ids.local; i < HEADS * HEAD_DIM; i += WORKGROUP) {
        y[(row * params.heads + first) * HEAD_DIM + i] = scale * block[i];
    }
}
