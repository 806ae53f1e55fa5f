// y = f(gate) * up per row, with SiLU or GELU as f, rotated, for few rows. Grid: (units of the row, rows). A block takes a rotation block, or 512
// elements, in short code, because its instructions are cold every time.
// Bound: latency. H200, one row of 14,336: 2.3 us. Versions: docs/log/cuda-prefill.md.
KERNEL glu(const f32* x, f32* y, GluParams params, Packed packed = {}) {
    __shared__ __align__(16) f32 stage[SPAN_STAGE];
    release_next();
    wait_inputs();
    const u32 unit = params.rotate ? params.rotate : SPAN, first = blockIdx.x * unit;
    const u32 count = min(unit, params.dim - first);
    if (blockIdx.y >= params.rows) return packed.store_all(blockIdx.y, first, count, [](u32) { return 0.f; });
    const f32* gate = x + (u64)blockIdx.y * 2 * params.dim + first;
    f32* out = y + (u64)blockIdx.y * params.dim + first;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) stage[padded(i)] = activation(gate[i], params.gelu) * gate[params.dim + i];
    if (params.rotate) rotate_shared<false>(stage, first, count, params.rotate);
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) out[i] = stage[padded(i)];
    if (!packed.at) return;
    if (!params.rotate) __syncthreads();
    packed.store_all(blockIdx.y, first, count, [&](u32 i) { return stage[padded(i)]; });
}

// The same for many rows, a warp a span. Grid: (blocks of the row, rows).
// Bound: memory. H200, 512 rows of 14,336: 25 us, 72 % of peak.
KERNEL glu_rows(const f32* x, f32* y, GluParams params, Packed packed = {}) {
    release_next();
    wait_inputs();
    const u32 warp = threadIdx.x / 32, warps = blockDim.x / 32, row = blockIdx.y;
    const u32 first = (blockIdx.x * warps + warp) * SPAN;
    if (first >= params.dim) return;
    f32* stage = reinterpret_cast<f32*>(phase_shared()) + warp * SPAN_STAGE;
    f32 e[SPAN_EACH] = {};
    if (row < params.rows) {
        const f32* gate = x + (u64)row * 2 * params.dim;
        f32 up[SPAN_EACH];
        load_span(e, gate, first, params.dim);
        load_span(up, gate + params.dim, first, params.dim);
#pragma unroll
        for (u32 k = 0; k < SPAN_EACH; k++) e[k] = activation(e[k], params.gelu) * up[k];
        rotate_span(e, stage, first, params.rotate);
        store_span(y + (u64)row * params.dim, e, stage, first, params.dim);
    }
    if (packed.at) packed.store_span(row, e, first, params.dim);
}
