// y = silu(gate) * up per row, rotated. A thread block takes a rotation block, or 512 elements.
// Grid: (units of the row, rows).
KERNEL swiglu(const f32* x, f32* y, SwiGluParams params, Packed packed = {}) {
    __shared__ __align__(16) f32 stage[576];
    release_next();
    wait_inputs();
    const u32 unit = params.rotate ? params.rotate : 512, first = blockIdx.x * unit;
    const u32 count = min(unit, params.dim - first);
    if (blockIdx.y >= params.rows) return packed.store_all(blockIdx.y, first, count, [](u32) { return 0.f; });
    const f32* gate = x + (u64)blockIdx.y * 2 * params.dim + first;
    f32* out = y + (u64)blockIdx.y * params.dim + first;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) stage[padded(i)] = silu(gate[i]) * gate[params.dim + i];
    if (params.rotate) rotate_shared<false>(stage, first, count, params.rotate);
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) out[i] = stage[padded(i)];
    if (!packed.at) return;
    if (!params.rotate) __syncthreads();
    packed.store_all(blockIdx.y, first, count, [&](u32 i) { return stage[padded(i)]; });
}
