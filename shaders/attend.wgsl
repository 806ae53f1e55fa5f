// Causal softmax attention of HEADS neighbouring query heads of one row, in one workgroup: a running maximum over
// tiles of positions, up to four query heads of one key/value head at a time. The kernels that use this have
// `load_queries`, `key` and `value`.

// Of `params`; a constant, because the loops over it are the hottest.
override HEAD_DIM: u32;
override HEADS: u32;

// Positions of a tile.
const TILE = 128u;
// Invocations that share a position's dot product.
const LANES = 8u;
const LOWEST = -3.0e38;

// Four query heads, times `scale`.
var<workgroup> queries: array<vec4<f32>, HEAD_DIM>;
var<workgroup> scores: array<vec4<f32>, TILE>;
var<workgroup> parts: array<vec4<f32>, WORKGROUP>;

// The attention of one row: `base` is the first word of its slot in the caches, `y_at` of its output.
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
            for (var at = 0u; at < count; at += WORKGROUP / LANES) {
                let p = at + ids.local / LANES;
                var dot4 = vec4<f32>();
                if (p < count) {
                    for (var e = ids.local % LANES; e < HEAD_DIM; e += LANES) {
                        dot4 += queries[e] * key(base, start + p, position, e);
                    }
                }
                parts[ids.local] = dot4;
                workgroupBarrier();
                let mine = at + ids.local;
                if (ids.local < WORKGROUP / LANES && mine < count) {
                    var score = vec4<f32>();
                    for (var l = 0u; l < LANES; l++) {
                        score += parts[ids.local * LANES + l];
                    }
                    scores[mine] = score;
                }
                workgroupBarrier();
            }

            var top = vec4<f32>(LOWEST);
            for (var p = ids.local % 16u; p < count; p += 16u) {
                top = max(top, scores[p]);
            }
            parts[ids.local] = top;
            workgroupBarrier();
            for (var l = 0u; l < 16u; l++) {
                top = max(top, parts[l]);
            }
            let higher = max(highest, top);
            let shrink = exp(highest - higher);
            highest = higher;
            if (ids.local < count) {
                scores[ids.local] = exp(scores[ids.local] - higher);
            }
            workgroupBarrier();

            sum4 *= shrink;
            out4 *= shrink;
            if (split < splits) {
                for (var p = split; p < count; p += splits) {
                    sum4 += scores[p];
                    out4 += scores[p] * value(base, start + p, position, element);
                }
            }
            workgroupBarrier();
        }

        parts[ids.local] = out4;
        if (element == 0u) {
            scores[split] = sum4;
        }
        workgroupBarrier();
        if (split == 0u) {
            var total = vec4<f32>();
            var sum = vec4<f32>();
            for (var s = 0u; s < splits; s++) {
                total += parts[s * HEAD_DIM + element];
                sum += scores[s];
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
