// The largest value of each of ARGMAX_PARTS parts of a row, and its first position; NaN is larger than everything.
// Workgroup: part x of row y. Bound by latency: a row of 128,256 values is read in some 500 KB.

struct ArgmaxParams {
    dim: u32,
    pad0: u32,
    pad1: u32,
    pad2: u32,
}

@group(0) @binding(0) var<uniform> params: ArgmaxParams;
@group(0) @binding(1) var<storage, read> x: array<u32>; // [rows, dim]: f32
@group(0) @binding(2) var<storage, read_write> best: array<vec2<u32>>; // [rows, ARGMAX_PARTS]: rank, position

var<workgroup> ranks: array<u32, WORKGROUP>;
var<workgroup> positions: array<u32, WORKGROUP>;

// A number that grows with the f32 of these bits: 0 for none, the same for both zeros, the largest for any NaN. By
// bits, because a device may compile comparisons as if there were no NaN.
fn rank(bits: u32) -> u32 {
    let magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return 0xffffffffu;
    }
    return select(0x80000000u + magnitude, 0x80000000u - magnitude, bits != magnitude);
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let share = (params.dim + ARGMAX_PARTS - 1u) / ARGMAX_PARTS;
    let end = min((group.x + 1u) * share, params.dim);
    var highest = 0u;
    var position = 0u;
    for (var start = group.x * share + ids.local; start < end; start += 8u * WORKGROUP) {
        for (var k = 0u; k < 8u; k++) { // unroll 8
            let i = start + k * WORKGROUP;
            let v = rank(x[group.y * params.dim + min(i, params.dim - 1u)]);
            let higher = i < end && v > highest;
            highest = select(highest, v, higher);
            position = select(position, i, higher);
        }
    }
    ranks[ids.local] = highest;
    positions[ids.local] = position;
    for (var half = WORKGROUP / 2u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (ids.local < half) {
            let other = ranks[ids.local + half];
            let there = positions[ids.local + half];
            if (other > ranks[ids.local] || (other == ranks[ids.local] && there < positions[ids.local])) {
                ranks[ids.local] = other;
                positions[ids.local] = there;
            }
        }
    }
    if (ids.local == 0u) {
        best[group.y * ARGMAX_PARTS + group.x] = vec2<u32>(ranks[0], positions[0]);
    }
}
