// y = W x (+ bias) (+ y) for product-quantized W and few rows of x: codes are read once, centroids looked up and
// multiplied. Workgroup: TILES times MATVEC_ROWS * WORKGROUP / LANES rows of W (x) times row y of x. LANES
// invocations split the columns of MATVEC_ROWS rows of W: each takes every LANES-th stream of codes, so that
// neighbouring invocations read neighbouring words and neighbouring x. Four rows share what is read of x.
//
// Bound by the latency of the codes: the next four words are loaded while four are used, and LANES grows until there
// are some hundreds of workgroups. [28672 x 4096] at 2-256 on an H200: 61 us.

// Rows are components of a vector, and each span has a SPEC.
const_assert MATVEC_ROWS == 4u && MAX_SPANS == 4u;

// The number of slices, and the spec of each: constants, so that each slice is compiled for its spec.
override SPANS: u32;
override SPEC_0: u32;
override SPEC_1: u32;
override SPEC_2: u32;
override SPEC_3: u32;
// A power of two up to WORKGROUP.
override LANES: u32;
// Tiles of a workgroup, so that its table serves more rows.
override TILES: u32;
// Words of the largest codebook in workgroup memory, else 1.
override TABLE: u32;

@group(0) @binding(5) var<storage, read> words: array<u32>; // [rows, stride]
@group(0) @binding(6) var<storage, read> x: array<f32>; // [rows, cols]
@group(0) @binding(7) var<storage, read> tables: array<u32>; // [codebooks, K, centroid words]

var<workgroup> table: array<u32, TABLE>;
var<workgroup> sums4: array<vec4<f32>, WORKGROUP>;

// Element `column` of the row of x that begins at `row`, 0 past its end.
fn element(s: Spec, span: Span, row: u32, column: u32) -> f32 {
    if (s.ragged) {
        return select(0.0, x[row + min(column, span.cols - 1u)], column < span.cols);
    }
    return x[row + column];
}

// The product of a word of four dense rows, which is columns 2i and 2i + 1, with the row of x that begins at `row`.
fn dense_product(s: Spec, span: Span, four: vec4<u32>, row: u32, i: u32) -> vec4<f32> {
    let a = unpack_f16(four.x);
    let b = unpack_f16(four.y);
    let c = unpack_f16(four.z);
    let d = unpack_f16(four.w);
    return vec4<f32>(a.x, b.x, c.x, d.x) * element(s, span, row, 2u * i)
        + vec4<f32>(a.y, b.y, c.y, d.y) * element(s, span, row, 2u * i + 1u);
}

// Elements 2i and 2i + 1 of the centroid at `at`.
fn centroid_pair(s: Spec, at: u32, i: u32) -> vec2<f32> {
    if (s.shared_table) {
        return unpack_f16(table[at + i]);
    }
    return unpack_f16(tables[at + i]);
}

// The product of elements 2i and 2i + 1 of four rows' centroids with x from `column` on.
fn pair_product(s: Spec, span: Span, at: vec4<u32>, i: u32, row: u32, column: u32) -> vec4<f32> {
    let a = centroid_pair(s, at.x, i);
    let b = centroid_pair(s, at.y, i);
    let c = centroid_pair(s, at.z, i);
    let d = centroid_pair(s, at.w, i);
    var dot4 = vec4<f32>(a.x, b.x, c.x, d.x) * element(s, span, row, column);
    if (2u * i + 1u < s.d) {
        dot4 += vec4<f32>(a.y, b.y, c.y, d.y) * element(s, span, row, column + 1u);
    }
    return dot4;
}

// The product of four rows' codes of subspace `subspace` with x.
fn product(s: Spec, span: Span, code: vec4<u32>, base: vec4<u32>, subspace: u32, row: u32) -> vec4<f32> {
    var at = base + code * ((s.d + 1u) / 2u);
    if (!s.single) {
        let j = select(subspace, min(subspace, (span.cols - 1u) / s.d), s.ragged);
        at += j / span.group * s.book;
    }
    var dot4 = pair_product(s, span, at, 0u, row, subspace * s.d);
    if (s.d > 2u) {
        dot4 += pair_product(s, span, at, 1u, row, subspace * s.d + 2u);
    }
    if (s.d > 4u) {
        dot4 += pair_product(s, span, at, 2u, row, subspace * s.d + 4u);
    }
    if (s.d > 6u) {
        dot4 += pair_product(s, span, at, 3u, row, subspace * s.d + 6u);
    }
    return dot4;
}

fn four_words(at: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(words[at.x], words[at.y], words[at.z], words[at.w]);
}

// The rows of an invocation in the tile that begins at row n.
fn four_rows(span: Span, n: u32, local: u32) -> vec4<u32> {
    return min(n + local / LANES * MATVEC_ROWS + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(span.rows - 1u));
}

fn multiply(s: Spec, span: Span, local: u32, group: vec3<u32>) {
    let block = group.x - span.begin;
    let lane = local % LANES;
    let row = group.y * span.cols;
    let tile = MATVEC_ROWS * (WORKGROUP / LANES);
    let mask = vec4<u32>((1u << s.bits) - 1u);
    // The first words are loaded while the table is.
    let first = four_words(four_rows(span, block * TILES * tile, local) * span.stride + span.words + min(lane, max(span.chunks, 1u) - 1u));
    if (TABLE > 1u) {
        let at = span.tables + row_info[span.row_info + block * TILES * tile].y;
        for (var i = local; s.shared_table && i < s.book; i += WORKGROUP) {
            table[i] = tables[at + i];
        }
        workgroupBarrier();
    }
    for (var t = 0u; t < TILES; t++) {
        let rows = four_rows(span, (block * TILES + t) * tile, local);
        let base = select(bases(span, rows), vec4<u32>(), s.shared_table);
        var dots = vec4<f32>();
        for (var i = lane; s.dense && i < span.stride; i += LANES) {
            dots += dense_product(s, span, four_words(span.words + rows * span.stride + i), row, i);
        }
        for (var c = lane; c < span.chunks; c += LANES) {
            var at = span.words + rows * span.stride + c;
            var j = c;
            if (32u % s.bits == 0u) {
                var next = first;
                if (t > 0u || c != lane) {
                    next = four_words(at);
                }
                for (var w = 1u; w <= s.bits; w++) {
                    var now = next;
                    if (w < s.bits) {
                        at += span.chunks;
                        next = four_words(at);
                    }
                    for (var i = 0u; i < 32u / s.bits; i++) { // unroll 16
                        dots += product(s, span, (now >> vec4<u32>(i * s.bits % 32u)) & mask, base, j, row);
                        j += span.chunks;
                    }
                }
            } else {
                // The `have` bits of the last words that belong to codes to come.
                var left = vec4<u32>();
                var have = 0u;
                for (var i = 0u; i < STREAM; i++) {
                    var code = left & mask;
                    if (have < s.bits) {
                        let next = four_words(at);
                        at += span.chunks;
                        code = (left | (next << vec4<u32>(have))) & mask;
                        left = next >> vec4<u32>(s.bits - have);
                        have += 32u - s.bits;
                    } else {
                        left >>= vec4<u32>(s.bits);
                        have -= s.bits;
                    }
                    dots += product(s, span, code, base, j, row);
                    j += span.chunks;
                }
            }
        }
        sums4[local] = dots;
        for (var half = LANES / 2u; half > 0u; half >>= 1u) {
            workgroupBarrier();
            if (lane < half) {
                sums4[local] += sums4[local + half];
            }
        }
        workgroupBarrier();
        for (var i = local; i < tile; i += WORKGROUP) {
            let local_row = (block * TILES + t) * tile + i;
            if (local_row < span.rows) {
                store(span, group.y, local_row, sums4[i / MATVEC_ROWS * LANES][i % MATVEC_ROWS]);
            }
        }
        workgroupBarrier();
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    if (group.x < spans[0].count) {
        multiply(spec(SPEC_0), spans[0], ids.local, group);
    }
    // For workgroups before a slice's first, the difference wraps to a large number.
    if (SPANS > 1u) {
        if (group.x - spans[1].begin < spans[1].count) {
            multiply(spec(SPEC_1), spans[1], ids.local, group);
        }
    }
    if (SPANS > 2u) {
        if (group.x - spans[2].begin < spans[2].count) {
            multiply(spec(SPEC_2), spans[2], ids.local, group);
        }
    }
    if (SPANS > 3u) {
        if (group.x - spans[3].begin < spans[3].count) {
            multiply(spec(SPEC_3), spans[3], ids.local, group);
        }
    }
}
