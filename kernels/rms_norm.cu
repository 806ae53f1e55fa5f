// y = (weight + weight_offset) * x / sqrt(mean(x^2) + eps) per row, rotated. One block a row; the row stays in shared
// memory between the sum, the product and the rotation.
KERNEL BOUNDS(1024) rms_norm(const f32* x, const f32* weight, f32* y, RmsNormParams params,
                              Packed packed = {}) {
    f32* row = reinterpret_cast<f32*>(phase_shared()); // element i at padded(i)
    constexpr u32 AT_ONCE = 4;
    release_next();
    wait_inputs();
    if (blockIdx.x >= params.rows) return packed.store_all(blockIdx.x, 0, params.dim, [](u32) { return 0.f; });
    const f32* in = x + (u64)blockIdx.x * params.dim;
    f32* out = y + (u64)blockIdx.x * params.dim;
    f32 sum = 0.f;
    for (u32 first = threadIdx.x; first < params.dim; first += AT_ONCE * blockDim.x) {
        f32 v[AT_ONCE], w[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const u32 i = first + k * blockDim.x;
            v[k] = i < params.dim ? in[i] : 0.f;
            w[k] = i < params.dim ? weight[i] + params.weight_offset : 0.f;
        }
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const u32 i = first + k * blockDim.x;
            sum += v[k] * v[k];
            if (i < params.dim) row[padded(i)] = v[k] * w[k];
        }
    }
    const f32 scale = rsqrtf(block_sum(sum) / params.dim + params.eps);
    if (params.rotate) rotate_shared<false>(row, 0, params.dim, params.rotate);
    for (u32 i = threadIdx.x; i < params.dim; i += blockDim.x) out[i] = row[padded(i)] * scale;
    if (!packed.at) return;
    if (!params.rotate) __syncthreads();
    packed.store_all(blockIdx.x, 0, params.dim, [&](u32 i) { return row[padded(i)] * scale; });
}
