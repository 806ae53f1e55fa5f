// The FASQ paper's LUT GEMM, kept for comparison: y = W x (+ bias) (+ y) for product-quantized W and many rows of x,
// without decoding W. The products of x with every centroid of a subspace are in workgroup memory, and a code adds
// one of them. Workgroup: LUT_W_ROWS * WORKGROUP rows of W (x) times LUT_X_ROWS rows of x (y), whose sums stay in
// registers.
//
// A table costs K * D multiplications and serves LUT_W_ROWS * WORKGROUP codes, which cost an addition of four numbers
// each: D times fewer than multiplying. The next table is made while one is read.
// [6144 x 4096] times 512 rows on an H200: 13.5 ms, 13 times what pq_matmul.wgsl takes.

// Rows of x are components of a vector.
const_assert LUT_X_ROWS == 4u;

// Centroids of a codebook.
override K: u32;
// 2 * K.
override PRODUCTS: u32;

// Four rows of x times each centroid, of the subspace at hand and of the next.
var<workgroup> products: array<vec4<f32>, PRODUCTS>;

// Element `column` of four rows of x from r on.
fn column_of(r: u32, column: u32) -> vec4<f32> {
    let last = params.rows - 1u;
    let at = min(vec4<u32>(r, r + 1u, r + 2u, r + 3u), vec4<u32>(last)) * weight.cols + min(column, weight.cols - 1u);
    let four = vec4<f32>(x[at.x], x[at.y], x[at.z], x[at.w]);
    return select(vec4<f32>(), four, column < weight.cols);
}

// The products of subspace j, from `to` on.
fn make_products(local: u32, to: u32, base: u32, r: u32, j: u32) {
    let subspace = min(j, (weight.cols - 1u) / D);
    var xs: array<vec4<f32>, MAX_D>;
    for (var e = 0u; e < D; e++) {
        xs[e] = column_of(r, j * D + e);
    }
    for (var code = local; code < K; code += WORKGROUP) {
        let at = centroid(base, subspace, code);
        var sum4 = vec4<f32>();
        for (var e = 0u; e < centroid_words(); e++) {
            let v = centroid_pair(at, e);
            sum4 += v.x * xs[2u * e];
            if (2u * e + 1u < D) {
                sum4 += v.y * xs[2u * e + 1u];
            }
        }
        products[to + code] = sum4;
    }
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let n = group.x * LUT_W_ROWS * WORKGROUP;
    let r = group.y * LUT_X_ROWS;
    let base = row_info[n].y;
    var rows: array<u32, LUT_W_ROWS>;
    var sums4: array<vec4<f32>, LUT_W_ROWS>;
    for (var k = 0u; k < LUT_W_ROWS; k++) { // unroll 4
        rows[k] = min(n + k * WORKGROUP + ids.local, weight.rows - 1u);
    }
    var now = 0u;
    make_products(ids.local, now, base, r, 0u);
    workgroupBarrier();
    for (var c = 0u; c < weight.chunks; c++) {
        for (var i = 0u; i < STREAM; i++) {
            let last = i == STREAM - 1u;
            let next = select((i + 1u) * weight.chunks + c, c + 1u, last);
            make_products(ids.local, K - now, base, r, next);
            for (var k = 0u; k < LUT_W_ROWS; k++) { // unroll 4
                sums4[k] += products[now + code_at(rows[k] * weight.stride, i, c)];
            }
            now = K - now;
            workgroupBarrier();
        }
    }
    for (var k = 0u; k < LUT_W_ROWS; k++) { // unroll 4
        let local_row = n + k * WORKGROUP + ids.local;
        if (local_row < weight.rows) {
            let at = weight.first + local_row;
            let scale = bitcast<f32>(row_info[local_row].x);
            for (var i = 0u; i < min(LUT_X_ROWS, params.rows - r); i++) {
                var v = scale * sums4[k][i];
                if (HAS_BIAS) {
                    v += bias[at];
                }
                let out = (r + i) * params.y_stride + params.y_offset + at;
                y[out] = v + select(0.0, y[out], params.accumulate != 0u);
            }
        }
    }
}
