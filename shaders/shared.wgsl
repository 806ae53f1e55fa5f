// The workgroup's number is not here: in one struct with an invocation's, it would not count as uniform, and so no
// barrier could stand in a branch on it.
struct Ids {
    @builtin(local_invocation_index) local: u32,
}

var<workgroup> sums: array<f32, WORKGROUP>;

fn workgroup_sum(ids: Ids, value: f32) -> f32 {
    sums[ids.local] = value;
    for (var half = WORKGROUP / 2u; half > 0u; half >>= 1u) {
        workgroupBarrier();
        if (ids.local < half) {
            sums[ids.local] += sums[ids.local + half];
        }
    }
    workgroupBarrier();
    let total = sums[0];
    workgroupBarrier();
    return total;
}
