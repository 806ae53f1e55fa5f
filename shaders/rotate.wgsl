// y = R x. Workgroup: block x of row y. Bound by latency and barriers.

// Whether x is y, which is then bound once.
override IN_PLACE: bool;

@group(0) @binding(0) var<uniform> params: RotateParams;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [rows, dim]
@group(0) @binding(2) var<storage, read_write> y: array<f32>; // [rows, dim]

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let first = group.x * params.rotate;
    let row = group.y * params.dim + first;
    for (var i = ids.local; i < params.rotate; i += WORKGROUP) {
        if (IN_PLACE) {
            block[i] = y[row + i] * sign_of(first + i);
        } else {
            block[i] = x[row + i] * sign_of(first + i);
        }
    }
    let scale = rotate_block(ids.local, params.rotate, params.rotate);
    for (var i = ids.local; i < params.rotate; i += WORKGROUP) {
        y[row + i] = scale * block[i];
    }
}
