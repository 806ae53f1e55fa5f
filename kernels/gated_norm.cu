// y = weight * x / sqrt(mean(x^2) + eps) * silu(gate) per head, the row rotated. One block a row, a warp a head.
KERNEL gated_norm(const f32* x, const f32* gate, const f32* weight, f32* y, GatedNormParams params) {
    f32* row = reinterpret_cast<f32*>(phase_shared()); // element i at padded(i)
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const u32 size = params.heads * params.dim;
    const f32* gates = gate + (u64)blockIdx.x * params.stride + params.offset;
    f32* out = y + (u64)blockIdx.x * size;
    for (u32 h = warp; h < params.heads; h += warps) {
        const f32* in = x + (u64)blockIdx.x * size + h * params.dim;
        f32 sum = 0.f;
        for (u32 i = lane; i < params.dim; i += 32) sum += in[i] * in[i];
        const f32 scale = rsqrtf(warp_sum(sum) / params.dim + params.eps);
        for (u32 i = lane; i < params.dim; i += 32) {
            const u32 at = h * params.dim + i;
            const f32 v = weight[i] * (in[i] * scale) * silu(gates[at]);
            if (params.rotate) row[padded(at)] = v;
            else out[at] = v;
        }
    }
    if (!params.rotate) return;
    rotate_shared<false>(row, 0, size, params.rotate);
    for (u32 i = threadIdx.x; i < size; i += blockDim.x) out[i] = row[padded(i)];
}
