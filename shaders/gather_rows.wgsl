// y[r] = x[index[r]]. Workgroup: WORKGROUP elements (x) of row y. Bound by memory.

@group(0) @binding(0) var<uniform> params: GatherRowsParams;
@group(0) @binding(1) var<storage, read> x: array<u32>; // [*, dim]
@group(0) @binding(2) var<storage, read> index: array<u32>; // [rows]
@group(0) @binding(3) var<storage, read_write> y: array<u32>; // [rows, dim]

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let i = group.x * WORKGROUP + ids.local;
    if (i < params.dim) {
        y[group.y * params.dim + i] = x[index[group.y] * params.dim + i];
    }
}
