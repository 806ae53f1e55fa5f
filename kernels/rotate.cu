// y = R x per row (the block Hadamard rotation of src/pq/rotate.rs); x and y may be the same. Grid: (blocks of the row,
// rows), a warp a span of 512 elements.
// Bound: memory for many rows, latency for few.
KERNEL rotate(const f32* x, f32* y, RotateParams params, Packed packed = {}) {
    release_next();
    wait_inputs();
    const u32 warp = threadIdx.x / 32, warps = min(blockDim.x / 32, SPAN_WARPS);
    const u32 first = (blockIdx.x * warps + warp) * SPAN;
    if (warp >= warps || first >= params.dim) return;
    f32* stage = reinterpret_cast<f32*>(phase_shared()) + warp * SPAN_STAGE;
    const u32 row = blockIdx.y;
    const u64 at = (u64)row * params.dim;
    f32 e[SPAN_EACH] = {};
    if (row < params.rows) {
        load_span(e, x + at, first, params.dim);
        rotate_span(e, stage, first, params.rotate);
        store_span(y + at, e, stage, first, params.dim);
    }
    if (packed.at) packed.store_span(row, e, first, params.dim);
}
