// y = W x for dense W [out, in] and few rows of x, in f32. A warp takes WARP_ROWS rows of W, each lane 16 bytes of each at a
// time, so that W is read once whatever the number of rows of x. One row goes to dense_row.cu; many go to cuBLAS, for which
// to_half converts x, and add_bias finishes y.
// Bound: memory.
// Constants: DENSE_DTYPE, DENSE_TOKENS.

#ifdef DENSE_TOKENS
constexpr int TOKENS = DENSE_TOKENS, WARP_ROWS = 4;
constexpr int WIDE = DENSE_DTYPE == F32 ? 4 : 8; // elements in 16 bytes

__device__ __forceinline__ f32 element(const void* weight, u64 at) {
    if constexpr (DENSE_DTYPE == F32) return static_cast<const f32*>(weight)[at];
    const u16 h = static_cast<const u16*>(weight)[at];
    return DENSE_DTYPE == F16 ? from_f16(h) : from_bf16(h);
}

KERNEL __launch_bounds__(256) dense_matvec(const void* weight, const f32* bias, const f32* x, f32* y, u32 out, u32 in,
                                           LinearParams params) {
    const u32 lane = threadIdx.x & 31, n0 = (blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5)) * WARP_ROWS;
    release_next();
    f32 sums[WARP_ROWS][TOKENS] = {};
    if (in % WIDE == 0) {
        const u32 wide = in / WIDE;
        const uint4* rows[WARP_ROWS];
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            rows[r] = static_cast<const uint4*>(weight) + (u64)min(n0 + r, out - 1) * wide;
        }
        uint4 next[WARP_ROWS] = {};
        if (lane < wide) {
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) next[r] = load_stream(rows[r] + lane);
        }
        wait_inputs();
        for (u32 i = lane; i < wide; i += 32) {
            uint4 now[WARP_ROWS];
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) now[r] = next[r];
            if (i + 32 < wide) {
#pragma unroll
                for (int r = 0; r < WARP_ROWS; r++) next[r] = load_stream(rows[r] + i + 32);
            }
            f32 xs[TOKENS][WIDE];
#pragma unroll
            for (int t = 0; t < TOKENS; t++) {
#pragma unroll
                for (int k = 0; k < WIDE; k += 4) {
                    const float4 q = *reinterpret_cast<const float4*>(x + (u64)t * in + i * WIDE + k);
                    xs[t][k] = q.x, xs[t][k + 1] = q.y, xs[t][k + 2] = q.z, xs[t][k + 3] = q.w;
                }
            }
#pragma unroll
            for (int r = 0; r < WARP_ROWS; r++) {
                f32 w[WIDE];
                unpack<DENSE_DTYPE>(w, now[r]);
#pragma unroll
                for (int t = 0; t < TOKENS; t++) {
#pragma unroll
                    for (int k = 0; k < WIDE; k++) sums[r][t] += w[k] * xs[t][k];
                }
            }
        }
    } else {
        wait_inputs();
#pragma unroll
        for (int r = 0; r < WARP_ROWS; r++) {
            for (u32 i = lane; i < in && n0 + r < out; i += 32) {
                const f32 w = element(weight, (u64)(n0 + r) * in + i);
#pragma unroll
                for (int t = 0; t < TOKENS; t++) sums[r][t] += w * x[(u64)t * in + i];
            }
        }
    }
#pragma unroll
    for (int r = 0; r < WARP_ROWS; r++) {
#pragma unroll
        for (int t = 0; t < TOKENS; t++) {
            const f32 sum = warp_sum(sums[r][t]);
            if (lane == 0 && n0 + r < out) store_linear(y, bias, t, n0 + r, sum, params);
        }
    }
}
#else

// Converts x [rows, cols] to f16 (dtype F16) or bf16. Grid: (rows * cols / 4 / block).
KERNEL to_half(const f32* x, u16* y, u32 rows, u32 cols, u32 dtype) {
    release_next();
    wait_inputs();
    const u64 count = (u64)rows * cols, i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    if (i + 4 <= count && (u64)x % 16 == 0) {
        const float4 v = *reinterpret_cast<const float4*>(x + i);
        *reinterpret_cast<uint2*>(y + i) = make_uint2(pack_half(v.x, v.y, dtype), pack_half(v.z, v.w, dtype));
    } else {
        for (u64 k = i; k < count; k++) y[k] = (u16)pack_half(x[k], 0.f, dtype);
    }
}

// Adds the bias to y's columns. Grid: (out / block, rows).
KERNEL add_bias(const f32* bias, f32* y, u32 out, LinearParams params) {
    release_next();
    wait_inputs();
    const u32 n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n < out) y[(u64)blockIdx.y * params.y_stride + params.y_offset + n] += bias[n];
}
#endif
