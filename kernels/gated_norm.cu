// y = weight * x / sqrt(mean(x^2) + eps) * silu(gate) per head, the row rotated. Grid: (parts, rows). A block takes an equal
// part of a row, of whole heads and rotation blocks, a warp a head.
// Bound: latency for one row, 2.9 us on an H200 (qwen3.5-9b); memory for 512, 14 us.
KERNEL gated_norm(const f32* x, const f32* gate, const f32* weight, f32* y, GatedNormParams params) {
    f32* part = reinterpret_cast<f32*>(phase_shared()); // element i at padded(i)
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    const u32 count = params.heads * params.dim / gridDim.x, first = blockIdx.x * count;
    const f32* in = x + (u64)blockIdx.y * params.heads * params.dim + first;
    const f32* gates = gate + (u64)blockIdx.y * params.stride + params.offset + first;
    f32* out = y + (u64)blockIdx.y * params.heads * params.dim + first;
    for (u32 at = warp * params.dim; at < count; at += warps * params.dim) {
        f32 sum = 0.f;
        for (u32 i = lane; i < params.dim; i += 32) sum += in[at + i] * in[at + i];
        const f32 scale = rsqrtf(warp_sum(sum) / params.dim + params.eps);
        for (u32 i = lane; i < params.dim; i += 32) {
            const f32 v = weight[i] * (in[at + i] * scale) * silu(gates[at + i]);
            if (params.rotate) part[padded(at + i)] = v;
            else out[at + i] = v;
        }
    }
    if (!params.rotate) return;
    rotate_shared<false>(part, first, count, params.rotate);
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) out[i] = part[padded(i)];
}
