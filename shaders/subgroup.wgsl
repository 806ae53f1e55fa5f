// The workgroup's number is not here: in one struct with an invocation's, it would not count as uniform, and so no
// barrier could stand in a branch on it.
struct Ids {
    @builtin(local_invocation_index) local: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) lane: u32,
}

// One for each subgroup, which has at least 4 invocations (MIN_SUBGROUP in device.rs).
var<workgroup> sums: array<f32, WORKGROUP / 4u>;

fn workgroup_sum(ids: Ids, value: f32) -> f32 {
    let part = subgroupAdd(value);
    if (ids.lane == 0u) {
        sums[ids.subgroup] = part;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < ids.subgroups; i++) {
        total += sums[i];
    }
    workgroupBarrier();
    return total;
}
