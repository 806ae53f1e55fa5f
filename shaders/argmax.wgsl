// The largest value of each PARTS-th part of a row, and its first place. Workgroup: part x of row y.

struct ArgmaxParams {
    dim: u32,
    parts: u32,
    pad0: u32,
    pad1: u32,
}

@group(0) @binding(0) var<uniform> params: ArgmaxParams;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, dim]
@group(0) @binding(2) var<storage, read_write> best: array<vec2<u32>>; // [rows, parts]: value (f32), place

var<workgroup> values: array<f32, WORKGROUP>;
var<workgroup> found: array<u32, WORKGROUP>;

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let share = (params.dim + params.parts - 1u) / params.parts;
    let end = min((group.x + 1u) * share, params.dim);
    var value = -3.4e38;
    var place = 0u;
    for (var start = group.x * share + ids.local; start < end; start += 8u * WORKGROUP) {
        for (var k = 0u; k < 8u; k++) { // unroll 8
            let i = start + k * WORKGROUP;
            let v = x[group.y * params.dim + min(i, params.dim - 1u)];
            let better = i < end && v > value;
            value = select(value, v, better);
            place = select(place, i, better);
        }
    }
    values[ids.local] = value;
    found[ids.local] = place;
    for (var half = WORKGROUP / 2u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (ids.local < half) {
            let other = values[ids.local + half];
            let there = found[ids.local + half];
            if (other > values[ids.local] || (other == values[ids.local] && there < found[ids.local])) {
                values[ids.local] = other;
                found[ids.local] = there;
            }
        }
    }
    if (ids.local == 0u) {
        best[group.y * params.parts + group.x] = vec2<u32>(bitcast<u32>(values[0]), found[0]);
    }
}
