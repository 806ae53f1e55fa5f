// y = (residual +) (weight + weight_offset) * x / sqrt(mean(x^2) + eps) per row, rotated where nothing is added. Grid: (rows, parts of a row). A block reads the
// whole row for the sum and computes its part, of whole rotation blocks, in shared memory. A few rows become many small
// blocks, one of which fits beside a block of pq_rows.cu or pq_matvec.cu: they start on all multiprocessors at once and wait
// for those kernels to end. Blocks of whole rows would gather on the first free ones.
// Bound: latency. H200, one row of 4,096: 2.8 us. Versions: docs/log/cuda-batch.md.
template <bool ADDED>
__device__ __forceinline__ void normalise(const f32* x, const f32* weight, const f32* residual, f32* y,
                                          const RmsNormParams& params, const Packed& packed) {
    f32* part = reinterpret_cast<f32*>(phase_shared()); // element first + i of the row at padded(i)
    constexpr u32 AT_ONCE = 4;
    const u32 unit = params.rotate ? params.rotate : SPAN, units = (params.dim + unit - 1) / unit;
    const u32 first = units * blockIdx.y / gridDim.y * unit;
    const u32 count = min(units * (blockIdx.y + 1) / gridDim.y * unit, params.dim) - first;
    release_next();
    wait_inputs();
    if (blockIdx.x >= params.rows) return packed.store_all(blockIdx.x, first, count, [](u32) { return 0.f; });
    const f32* in = x + (u64)blockIdx.x * params.dim;
    f32* out = y + (u64)blockIdx.x * params.dim + first;
    f32 sum = 0.f;
    for (u32 begin = threadIdx.x; begin < params.dim; begin += AT_ONCE * blockDim.x) {
        f32 v[AT_ONCE], w[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const u32 i = begin + k * blockDim.x;
            v[k] = i < params.dim ? in[i] : 0.f;
            w[k] = i - first < count ? weight[i] + params.weight_offset : 0.f;
        }
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const u32 i = begin + k * blockDim.x;
            sum += v[k] * v[k];
            if (i - first < count) part[padded(i - first)] = v[k] * w[k];
        }
    }
    const f32 scale = rsqrtf(block_sum(sum) / params.dim + params.eps);
    if (params.rotate) rotate_shared<false>(part, first, count, params.rotate);
    const f32* before = residual + (u64)blockIdx.x * params.dim + first;
    auto sum_at = [&](u32 i) { return part[padded(i)] * scale + (ADDED ? before[i] : 0.f); };
    for (u32 i = threadIdx.x; i < count; i += blockDim.x) out[i] = sum_at(i);
    if (!packed.at) return;
    if (!params.rotate) __syncthreads();
    packed.store_all(blockIdx.x, first, count, sum_at);
}

// Kernels of their own: with one register more than 32 a block no longer fits beside a product's.
KERNEL BOUNDS(1024) rms_norm(const f32* x, const f32* weight, f32* y, RmsNormParams params, Packed packed = {}) {
    normalise<false>(x, weight, nullptr, y, params, packed);
}

KERNEL BOUNDS(1024) rms_norm_added(const f32* x, const f32* weight, const f32* residual, f32* y, RmsNormParams params,
                                   Packed packed = {}) {
    normalise<true>(x, weight, residual, y, params, packed);
}

// The same for many rows. Grid: (rows); a warp holds a span of the row in registers. H200, 512 rows of 4,096: 8.1 us.
template <bool ADDED>
__device__ __forceinline__ void normalise_rows(const f32* x, const f32* weight, const f32* residual, f32* y,
                                               const RmsNormParams& params, const Packed& packed) {
    const u32 warp = threadIdx.x / 32, onward = blockDim.x / 32 * SPAN, row = blockIdx.x;
    f32* stage = reinterpret_cast<f32*>(phase_shared()) + warp * SPAN_STAGE;
    release_next();
    wait_inputs();
    const f32* in = x + (u64)row * params.dim;
    const bool there = row < params.rows;
    f32 e[SPAN_EACH] = {}, sum = 0.f;
    auto add = [&]() {
#pragma unroll
        for (u32 k = 0; k < SPAN_EACH; k++) sum += e[k] * e[k];
    };
    for (u32 first = warp * SPAN + onward; there && first < params.dim; first += onward) {
        load_span(e, in, first, params.dim);
        add();
    }
    if (there) load_span(e, in, warp * SPAN, params.dim);
    add();
    const f32 scale = rsqrtf(block_sum(sum) / params.dim + params.eps);
    for (u32 first = warp * SPAN; first < params.dim; first += onward) {
        if (there) {
            f32 w[SPAN_EACH];
            load_span(w, weight, first, params.dim);
            if (first >= onward) load_span(e, in, first, params.dim);
#pragma unroll
            for (u32 k = 0; k < SPAN_EACH; k++) e[k] *= (w[k] + params.weight_offset) * scale;
            if constexpr (ADDED) {
                f32 before[SPAN_EACH];
                load_span(before, residual + (u64)row * params.dim, first, params.dim);
#pragma unroll
                for (u32 k = 0; k < SPAN_EACH; k++) e[k] += before[k];
            }
            rotate_span(e, stage, first, params.rotate);
            store_span(y + (u64)row * params.dim, e, stage, first, params.dim);
        }
        if (packed.at) packed.store_span(row, e, first, params.dim);
    }
}

KERNEL BOUNDS(512) rms_norm_rows(const f32* x, const f32* weight, f32* y, RmsNormParams params, Packed packed = {}) {
    normalise_rows<false>(x, weight, nullptr, y, params, packed);
}

KERNEL BOUNDS(512) rms_norm_rows_added(const f32* x, const f32* weight, const f32* residual, f32* y, RmsNormParams params,
                                       Packed packed = {}) {
    normalise_rows<true>(x, weight, residual, y, params, packed);
}
