// y = W x (+ bias) (+ y) for product-quantized W and few rows of x: codes are read once, centroids looked up and
// multiplied. Workgroup: TILES times 4 * WORKGROUP / LANES rows of W (x) times row y of x. LANES invocations split the
// columns of 4 rows of W: each takes every LANES-th stream of codes.
//
// What the time goes into is latency: of the codes, which stand so that neighbouring lanes read neighbouring words and
// of which the next four words are on their way while four are used, and of too few workgroups, so LANES grows until
// there are some hundreds. Streams begin at neighbouring subspaces, so that lanes read neighbouring x as well. Four
// rows share what is read of x.

// A power of two up to WORKGROUP.
override LANES: u32;
// Tiles of a workgroup, so that its table serves more rows.
override TILES: u32;

var<workgroup> sums4: array<vec4<f32>, WORKGROUP>;

// The product of elements 2i and 2i + 1 of four rows' centroids with x from `column` on.
fn pair_product(at: vec4<u32>, i: u32, row: u32, column: u32) -> vec4<f32> {
    let a = centroid_pair(at.x, i);
    let b = centroid_pair(at.y, i);
    let c = centroid_pair(at.z, i);
    let d = centroid_pair(at.w, i);
    var dot4 = vec4<f32>(a.x, b.x, c.x, d.x) * element(row, column);
    if (2u * i + 1u < D) {
        dot4 += vec4<f32>(a.y, b.y, c.y, d.y) * element(row, column + 1u);
    }
    return dot4;
}

// The product of four rows' codes of subspace `place` with x.
fn product(code: vec4<u32>, base: vec4<u32>, place: u32, row: u32) -> vec4<f32> {
    let j = select(place, min(place, (weight.cols - 1u) / D), RAGGED);
    let at = vec4<u32>(
        centroid(base.x, j, code.x),
        centroid(base.y, j, code.y),
        centroid(base.z, j, code.z),
        centroid(base.w, j, code.w),
    );
    var dot4 = pair_product(at, 0u, row, place * D);
    if (D > 2u) {
        dot4 += pair_product(at, 1u, row, place * D + 2u);
    }
    if (D > 4u) {
        dot4 += pair_product(at, 2u, row, place * D + 4u);
    }
    if (D > 6u) {
        dot4 += pair_product(at, 3u, row, place * D + 6u);
    }
    return dot4;
}

fn four_words(at: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(words[at.x], words[at.y], words[at.z], words[at.w]);
}

// The rows of an invocation in the tile that begins at row n.
fn four_rows(n: u32, local: u32) -> vec4<u32> {
    return min(n + local / LANES * 4u + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(weight.rows - 1u));
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let lane = ids.local % LANES;
    let row = group.y * weight.cols;
    let tile = 4u * (WORKGROUP / LANES);
    let mask = vec4<u32>(code_mask());
    // The first words are on their way while the table comes.
    let first = four_words(four_rows(group.x * TILES * tile, ids.local) * weight.stride + min(lane, weight.chunks - 1u));
    if (SHARED) {
        load_table(ids.local, places[group.x * TILES * tile].y);
        workgroupBarrier();
    }
    for (var t = 0u; t < TILES; t++) {
        let rows = four_rows((group.x * TILES + t) * tile, ids.local);
        let base = vec4<u32>(places[rows.x].y, places[rows.y].y, places[rows.z].y, places[rows.w].y);
        var dots = vec4<f32>();
        for (var c = lane; c < weight.chunks; c += LANES) {
            var at = rows * weight.stride + c;
            var j = c;
            if (32u % BITS == 0u) {
                var next = first;
                if (t > 0u || c != lane) {
                    next = four_words(at);
                }
                for (var w = 1u; w <= BITS; w++) {
                    var now = next;
                    if (w < BITS) {
                        at += weight.chunks;
                        next = four_words(at);
                    }
                    for (var i = 0u; i < 32u / BITS; i++) { // unroll 8
                        dots += product((now >> vec4<u32>(i * BITS % 32u)) & mask, base, j, row);
                        j += weight.chunks;
                    }
                }
            } else {
                // The `have` bits of the last words that no code has taken yet.
                var left = vec4<u32>();
                var have = 0u;
                for (var i = 0u; i < 32u; i++) {
                    var code = left & mask;
                    if (have < BITS) {
                        let next = four_words(at);
                        at += weight.chunks;
                        code = (left | (next << vec4<u32>(have))) & mask;
                        left = next >> vec4<u32>(BITS - have);
                        have += 32u - BITS;
                    } else {
                        left >>= vec4<u32>(BITS);
                        have -= BITS;
                    }
                    dots += product(code, base, j, row);
                    j += weight.chunks;
                }
            }
        }
        sums4[ids.local] = dots;
        for (var half = LANES / 2u; half > 0u; half >>= 1u) {
            workgroupBarrier();
            if (lane < half) {
                sums4[ids.local] += sums4[ids.local + half];
            }
        }
        workgroupBarrier();
        for (var i = ids.local; i < tile; i += WORKGROUP) {
            let local_row = (group.x * TILES + t) * tile + i;
            if (local_row < weight.rows) {
                let at = weight.first + local_row;
                var v = bitcast<f32>(places[local_row].x) * sums4[i / 4u * LANES][i % 4u];
                if (HAS_BIAS) {
                    v += bias[at];
                }
                let out = group.y * params.y_stride + params.y_offset + at;
                y[out] = v + select(0.0, y[out], params.accumulate != 0u);
            }
        }
        workgroupBarrier();
    }
}
