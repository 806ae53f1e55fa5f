// y[r] = scale * table[tokens[r]], rotated back where the table is stored rotated. Grid: (rows).
// Bound: latency.

__device__ __forceinline__ void store_row(f32* row, f32* y, u32 dim, f32 scale, u32 rotate) {
    if (rotate) rotate_shared<true>(row, 0, dim, rotate);
    for (u32 i = threadIdx.x; i < dim; i += blockDim.x) y[i] = scale * row[padded(i)];
}

#ifdef PQ_D
KERNEL embed_pq(const u32* tokens, const u32* codes, const u16* codebook, const u16* scales, f32* y, u32 code_tiles,
                u32 group, u32 rotate, EmbedParams params) {
    f32* row = reinterpret_cast<f32*>(phase_shared()); // element i at padded(i)
    release_next();
    wait_inputs();
    const u32 token = tokens[blockIdx.x];
    const f32 scale = scales ? from_f16(scales[token]) : 1.f;
    for (u32 i = threadIdx.x; i < params.dim; i += blockDim.x) {
        const u32 j = i / D;
        const u32 code = code_of(codes, code_tiles, token, j);
        const u64 entry = (((u64)(j / group) << BITS) + code) * (ENTRY_WORDS * 2);
        row[padded(i)] = scale * from_f16(codebook[entry + i % D]);
    }
    store_row(row, y + (u64)blockIdx.x * params.dim, params.dim, params.scale, rotate);
}
#else
KERNEL embed(const u32* tokens, const void* table, f32* y, u32 dtype, EmbedParams params) {
    f32* row = reinterpret_cast<f32*>(phase_shared()); // element i at padded(i)
    release_next();
    wait_inputs();
    const u64 first = (u64)tokens[blockIdx.x] * params.dim;
    for (u32 i = threadIdx.x; i < params.dim; i += blockDim.x) {
        row[padded(i)] = dtype == F32    ? static_cast<const f32*>(table)[first + i]
                 : dtype == F16 ? from_f16(static_cast<const u16*>(table)[first + i])
                                 : from_bf16(static_cast<const u16*>(table)[first + i]);
    }
    store_row(row, y + (u64)blockIdx.x * params.dim, params.dim, params.scale, 0);
}
#endif
