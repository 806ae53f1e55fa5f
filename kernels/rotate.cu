// y = R x per row; x and y may be the same. A warp a span of a row. Grid: (blocks of the row, rows).
KERNEL rotate(const f32* x, f32* y, RotateParams params) {
    release_next();
    wait_inputs();
    const u32 warp = threadIdx.x / 32, warps = min(blockDim.x / 32, SPAN_WARPS);
    const u32 first = (blockIdx.x * warps + warp) * SPAN;
    if (warp >= warps || first >= params.dim) return;
    f32* stage = reinterpret_cast<f32*>(phase_shared()) + warp * SPAN_STAGE;
    const u64 row = (u64)blockIdx.y * params.dim;
    f32 e[SPAN_EACH];
    load_span(e, x + row, first, params.dim);
    rotate_span(e, stage, first, params.rotate);
    store_span(y + row, e, stage, first, params.dim);
}
