// pq_matvec for adapters that compute on a CPU. Workgroup: 4 * WORKGROUP rows of W (x) times row y of x; invocation: four
// whole rows, so that nothing is summed up between invocations.
//
// A driver of this kind turns each load from a storage buffer into a loop over the invocations that it runs abreast,
// which asks of each whether it takes part and whether its place is there. So a load of codes brings four words, of
// neighbouring streams, whose number is a multiple of four here, and what is short comes as uniforms (rows_uniform.wgsl).
//
// Such drivers take long to compile a kernel, and a model may have many specs, so here they are no constants.

// Whether all subspaces of every slice share a codebook: divisions to find it are slow.
override SINGLE: bool;

// Element `column` of the row of x that begins at `row`, 0 past its end.
fn element(span: Span, row: u32, column: u32) -> f32 {
    let i = row + min(column, span.cols - 1u);
    return select(0.0, x[i / 4u][i % 4u], column < span.cols);
}

// The word of centroids at `at`.
fn table_word(at: u32) -> u32 {
    return tables[at / 4u][at % 4u];
}

// The product of elements 2i and 2i + 1 of four rows' centroids with x from `column` on. The last word of a centroid of
// an odd length ends with a zero.
fn word_product(span: Span, at: vec4<u32>, i: u32, row: u32, column: u32) -> vec4<f32> {
    let a = halves(table_word(at.x + i));
    let b = halves(table_word(at.y + i));
    let c = halves(table_word(at.z + i));
    let d = halves(table_word(at.w + i));
    return vec4<f32>(a.x, b.x, c.x, d.x) * element(span, row, column + 2u * i)
        + vec4<f32>(a.y, b.y, c.y, d.y) * element(span, row, column + 2u * i + 1u);
}

// The product of four rows' codes of subspace j with x.
fn product(length: u32, s: Spec, span: Span, code: vec4<u32>, base: vec4<u32>, j: u32, row: u32) -> vec4<f32> {
    var at = base + code * length;
    if (!SINGLE) {
        at += min(j, (span.cols - 1u) / s.d) / span.group * s.book;
    }
    var dot4 = word_product(span, at, 0u, row, j * s.d);
    if (length > 1u) {
        dot4 += word_product(span, at, 1u, row, j * s.d);
    }
    for (var i = 2u; i < length; i++) {
        dot4 += word_product(span, at, i, row, j * s.d);
    }
    return dot4;
}

// The products of four rows, whose words begin at `first`, with x; `length` is the number of words of a centroid.
fn products(length: u32, s: Spec, span: Span, first: vec4<u32>, base: vec4<u32>, row: u32) -> vec4<f32> {
    let mask = vec4<u32>((1u << s.bits) - 1u);
    let codes = 32u / s.bits;
    let subspaces = (span.cols + s.d - 1u) / s.d;
    var sum = vec4<f32>();
    for (var c = 0u; c < span.chunks; c += 4u) {
        for (var w = 0u; w * codes * span.chunks + c < subspaces; w++) {
            let at = first + (w * span.chunks + c) / 4u;
            var k = words[at.x];
            var l = words[at.y];
            var m = words[at.z];
            var n = words[at.w];
            var j = w * codes * span.chunks + c;
            for (var i = 0u; i < codes && j < subspaces; i++) {
                sum += product(length, s, span, vec4<u32>(k.x, l.x, m.x, n.x) & mask, base, j, row);
                sum += product(length, s, span, vec4<u32>(k.y, l.y, m.y, n.y) & mask, base, j + 1u, row);
                sum += product(length, s, span, vec4<u32>(k.z, l.z, m.z, n.z) & mask, base, j + 2u, row);
                sum += product(length, s, span, vec4<u32>(k.w, l.w, m.w, n.w) & mask, base, j + 3u, row);
                k >>= vec4<u32>(s.bits);
                l >>= vec4<u32>(s.bits);
                m >>= vec4<u32>(s.bits);
                n >>= vec4<u32>(s.bits);
                j += span.chunks;
            }
        }
    }
    return sum;
}

// The same for dense rows.
fn dense_products(span: Span, first: vec4<u32>, row: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var i = 0u; i < span.stride; i += 4u) {
        let at = first + i / 4u;
        let k = words[at.x];
        let l = words[at.y];
        let m = words[at.z];
        let n = words[at.w];
        for (var e = 0u; e < 4u; e++) {
            let a = halves(k[e]);
            let b = halves(l[e]);
            let c = halves(m[e]);
            let d = halves(n[e]);
            sum += vec4<f32>(a.x, b.x, c.x, d.x) * element(span, row, 2u * (i + e))
                + vec4<f32>(a.y, b.y, c.y, d.y) * element(span, row, 2u * (i + e) + 1u);
        }
    }
    return sum;
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    var number = 0u;
    for (var i = 1u; i < 4u; i++) {
        number += select(0u, 1u, spans[i].count > 0u && group.x >= spans[i].begin);
    }
    let span = spans[number];
    let s = spec(span.spec);
    let n = (group.x - span.begin) * 4u * WORKGROUP + ids.local;
    let rows = vec4<u32>(n, n + WORKGROUP, n + 2u * WORKGROUP, n + 3u * WORKGROUP);
    let inside = min(rows, vec4<u32>(span.rows - 1u));
    let base = bases(span, inside);
    let first = (span.words + inside * span.stride) / 4u;
    let row = group.y * span.cols;
    let length = (s.d + 1u) / 2u;
    // What most files have is compiled for its length, once.
    var sum = vec4<f32>();
    if (s.dense) {
        sum = dense_products(span, first, row);
    } else if (length == 1u) {
        sum = products(1u, s, span, first, base, row);
    } else if (length == 2u) {
        sum = products(2u, s, span, first, base, row);
    } else {
        sum = products(length, s, span, first, base, row);
    }
    for (var i = 0u; i < 4u; i++) {
        if (rows[i] < span.rows) {
            store(span, group.y, rows[i], sum[i]);
        }
    }
}
