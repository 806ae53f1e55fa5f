// (weight + weight_offset) * x / sqrt(mean(x^2) + eps) of all query heads of a row, and of all its key heads, in place. Grid:
// (queries or keys, rows).
// Bound: latency.
KERNEL BOUNDS(512) qk_norm(f32* qkv, const f32* q_norm, const f32* k_norm, QkNormParams params) {
    release_next();
    wait_inputs();
    const bool keys = blockIdx.x;
    const u32 count = keys ? params.k_dim : params.q_dim;
    const f32* weight = keys ? k_norm : q_norm;
    f32* x = qkv + (u64)blockIdx.y * params.stride + (keys ? params.k_offset : 0);
    f32 sum = 0.f;
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) sum += x[i] * x[i];
    const f32 scale = rsqrtf(block_sum(sum) / count + params.eps);
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) x[i] *= (weight[i] + params.weight_offset) * scale;
}
