// y = W x (+ bias) (+ y) for few rows of x and a product-quantized W with one codebook, which is kept in workgroup
// memory. Workgroup: PASSES * WORKGROUP / LANES rows of W (x) times row y of x. LANES invocations share a row of W;
// each has WORDS words of codes of each of its rows, and their columns of x, which serve all of them, in registers.
//
// Bound by the latency of the codes: those of the next four rows are loaded while four are looked up. [28672 x 4096] at
// 2-256 on an H200: 44 us, 28 % of the memory's bandwidth.

// What the loops below are unrolled for.
const_assert TABLE_CODE_WORDS == 4u && TABLE_COLUMNS == 32u && TABLE_CENTROID_WORDS == 16u;

override D: u32;
override BITS: u32;
// Words of the codebook.
override BOOK: u32;
// A power of two up to WORKGROUP.
override LANES: u32;
// Words of codes of a stream that an invocation takes, whole codes together: BITS / WORDS invocations share a stream.
override WORDS: u32;
// Rows that an invocation takes, one after the other.
override PASSES: u32;
// PASSES * WORKGROUP.
override PARTS: u32;
// Whether codes or columns are missing at the end of the last streams.
override RAGGED: bool;

var<workgroup> table: array<u32, BOOK>;
// What each invocation has of each row: [rows, LANES].
var<workgroup> parts: array<f32, PARTS>;
var<workgroup> eighths: array<f32, WORKGROUP>;

// Element `column` of the row of x that begins at `row`, 0 past its end.
fn element(row: u32, column: u32) -> f32 {
    if (RAGGED) {
        return select(0.0, x[row + min(column, weight.cols - 1u)], column < weight.cols);
    }
    return x[row + column];
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let at_a_time = WORKGROUP / LANES;
    let lane = ids.local % LANES;
    let first = group.x * PASSES * at_a_time;
    let codes = 32u * WORDS / BITS;
    let units = weight.chunks * (BITS / WORDS);
    let base = row_info[first].y;
    for (var i = ids.local; i < BOOK; i += WORKGROUP) {
        table[i] = tables[base + i];
    }
    workgroupBarrier();
    for (var pass_lane = lane; pass_lane - lane < units; pass_lane += LANES) {
        let unit = min(pass_lane, units - 1u);
        let c = unit % weight.chunks;
        let part = unit / weight.chunks;
        var xs: array<f32, TABLE_COLUMNS>;
        for (var k = 0u; k < 32u; k++) { // unroll 32
            if (k < codes * D) {
                let column = ((part * codes + k / D) * weight.chunks + c) * D + k % D;
                xs[k] = select(0.0, element(group.y * weight.cols, column), pass_lane < units);
            }
        }
        let begin = part * WORDS * weight.chunks + c;
        let team = ids.local / LANES;
        var next: array<u32, 4u * TABLE_CODE_WORDS>;
        for (var p = 0u; p < 4u; p++) { // unroll 4
            let row = min(first + p * at_a_time + team, weight.rows - 1u);
            for (var w = 0u; w < 4u; w++) { // unroll 4
                if (w < WORDS) {
                    next[4u * p + w] = words[row * weight.stride + begin + w * weight.chunks];
                }
            }
        }
        for (var start = 0u; start < PASSES; start += 4u) {
            let now = next;
            if (start + 4u < PASSES) {
                for (var p = 0u; p < 4u; p++) { // unroll 4
                    let row = min(first + (start + 4u + p) * at_a_time + team, weight.rows - 1u);
                    for (var w = 0u; w < 4u; w++) { // unroll 4
                        if (w < WORDS) {
                            next[4u * p + w] = words[row * weight.stride + begin + w * weight.chunks];
                        }
                    }
                }
            }
            for (var p = 0u; p < 4u; p++) { // unroll 4
                var even = 0.0;
                var odd = 0.0;
                for (var k = 0u; k < 16u; k++) { // unroll 16
                    // Word e of centroid i.
                    let i = k / ((D + 1u) / 2u);
                    let e = k % ((D + 1u) / 2u);
                    if (i < codes) {
                        let bit = i * BITS;
                        let at = 4u * p + min(bit / 32u, 3u);
                        var code = now[at] >> (bit % 32u);
                        if (bit % 32u + BITS > 32u) {
                            code |= now[min(at + 1u, 15u)] << ((32u - bit % 32u) % 32u);
                        }
                        code &= (1u << BITS) - 1u;
                        let v = unpack_f16(table[code * ((D + 1u) / 2u) + e]);
                        even = fma(v.x, xs[min(i * D + 2u * e, 31u)], even);
                        if (2u * e + 1u < D) {
                            odd = fma(v.y, xs[min(i * D + 2u * e + 1u, 31u)], odd);
                        }
                    }
                }
                let mine = (start + p) * WORKGROUP + ids.local;
                if (pass_lane == lane) {
                    parts[mine] = even + odd;
                } else {
                    parts[mine] += even + odd;
                }
            }
        }
    }
    workgroupBarrier();
    let rows = PASSES * at_a_time;
    let share = min(LANES, WORKGROUP / rows);
    let row = ids.local / share;
    var sum = 0.0;
    if (row < rows) {
        for (var i = ids.local % share; i < LANES; i += share) {
            sum += parts[row * LANES + i];
        }
    }
    eighths[ids.local] = sum;
    workgroupBarrier();
    let n = first + ids.local;
    if (ids.local < rows && n < weight.rows) {
        sum = 0.0;
        for (var i = 0u; i < share; i++) {
            sum += eighths[ids.local * share + i];
        }
        var v = bitcast<f32>(row_info[n].x) * sum;
        if (HAS_BIAS) {
            v += bias[weight.first + n];
        }
        let out = group.y * params.y_stride + params.y_offset + weight.first + n;
        y[out] = v + select(0.0, y[out], params.accumulate != 0u);
    }
}
