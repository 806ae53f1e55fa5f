// Adds the column sums of pq_matvec_subspace.cu up to y: scales, bias, residual. A block takes a range of (token, row), one or
// several warps 32 of them at a time. With one row of x and `gated` not null, `gated` gets f(gate) * up of y's two halves,
// with SiLU or GELU as f.
KERNEL BOUNDS(512, 2)
pq_sum_parts(const __grid_constant__ SubspaceRows stack, const f32* bias, f32* y, const f32* partial, u32 parts,
             const __grid_constant__ LinearParams params, f32* gated, u32 gelu) {
    constexpr u32 WARPS = 16, MATRICES = SUBSPACE_MATRICES;
    __shared__ f32 shared[WARPS * 32];
    const u32 out = stack.rows_end[MATRICES - 1], all = out * params.rows, halves = gated ? 2 : 1;
    const u32 count = all / halves, first = (u64)count * blockIdx.x / gridDim.x, last = (u64)count * (blockIdx.x + 1) / gridDim.x;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, pieces = (last - first + 31) / 32;
    const u32 groups = pieces < WARPS ? WARPS / max(pieces, 1u) : 1, step = WARPS / groups, group = warp / step;
    release_next();
    wait_inputs();

    struct Output { f32* at; f32 scale, before; };
    auto output = [&](u32 i) {
        const u32 token = i / out, n = i - token * out;
        const u16* scales = stack.scales[0];
        u32 row0 = 0;
#pragma unroll
        for (u32 m = 1; m < MATRICES; m++) {
            if (n >= stack.rows_end[m - 1]) scales = stack.scales[m], row0 = stack.rows_end[m - 1];
        }
        Output to = {y + (u64)token * params.y_stride + params.y_offset + n, 1.f, 0.f};
        if (scales) to.scale = from_f16(scales[n - row0]);
        if (bias) to.before = bias[n];
        if (params.accumulate) to.before += *to.at;
        return to;
    };
    for (u32 piece = 0; piece < pieces; piece += step) {
        const u32 i = first + (piece + warp % step) * 32 + lane;
        const bool mine = group == 0 && i < last;
        f32 value = 0.f;
        for (u32 half = 0; half < halves; half++) {
            Output to = {};
            if (mine) to = output(half * count + i);
            f32 sum = 0.f;
            if (group < groups && i < last) {
#pragma unroll 8
                for (u32 k = group; k < parts; k += groups) sum += partial[(u64)k * all + half * count + i];
            }
            if (groups > 1) {
                __syncthreads();
                shared[threadIdx.x] = sum;
                __syncthreads();
                for (u32 k = 1; k < groups && mine; k++) sum += shared[k * step * 32 + threadIdx.x];
            }
            if (!mine) continue;
            sum = to.before + sum * to.scale;
            *to.at = sum;
            if (half) gated[i] = activation(value, gelu) * sum;
            value = sum;
        }
    }
}
