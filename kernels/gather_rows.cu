// y[r] = x[index[r]]. Grid: (columns / block, rows).
// Bound: latency; 1.0 us on an H200.
KERNEL gather_rows(const f32* x, const u32* index, f32* y, GatherRowsParams params) {
    release_next();
    wait_inputs();
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x, r = blockIdx.y;
    if (i < params.dim) y[(u64)r * params.dim + i] = x[(u64)index[r] * params.dim + i];
}
