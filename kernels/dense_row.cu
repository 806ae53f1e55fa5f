// y = W x for dense W [out, in] and one row of x, in f32: a launch of its own, or a phase of a step.
//
// Bound by memory alone, so all that counts is that loads never stop: a block a multiprocessor, rows shared out evenly,
// a warp a row; every lane has DEPTH loads of 16 bytes on their way and asks for the next as it uses one, across the ends
// of rows. 64 KiB a multiprocessor are under way so, also while the inputs are waited for. x is staged in shared memory,
// normalised where `norm` is given: the weights are applied there, the scale, being linear, to the sums.
// H200, f16, [28672 x 4096] cold: 58.8 us, 83 % of peak. Decoding llama3-8b: 194 tok/s by launches, 242 in a step.
// Constants: DENSE_DTYPE.

constexpr u32 DEPTH = 8, WIDE = DENSE_DTYPE == F32 ? 4 : 8; // elements of 16 bytes
constexpr u32 CHUNK = 32 * DEPTH;                           // loads of a row that a warp makes at a time

// Where element i of x stands: the halves of a lane's eight elements apart, so that no two lanes meet in a bank.
__device__ __forceinline__ u32 staged(u32 i) {
    return WIDE == 8 ? (i & ~255u) | (i & 4) << 5 | (i >> 3 & 31) << 2 | (i & 3) : i;
}

// The norm of x, where `prepared` says where the result is kept: see RmsNormParams.
struct MatvecInput { f32 eps, weight_offset; u32 rotate, unused[13]; };

// The matrix that the step's next matvec multiplies by: bytes of a row tile, row tiles, bytes that a block asks for ahead.
struct MatvecAhead { u32 tile_bytes, row_tiles, bytes, unused[13]; };

struct Call {
    const uint4* weight;
    const f32 *bias, *x;
    f32* y;
    u64 out, in;
    struct { u32 rows, y_stride, y_offset, accumulate, unused[12]; } params;
    const f32* norm;
    f32* prepared;
    MatvecInput input;
    const char* next;
    MatvecAhead ahead;
};

// Asks for the beginning of what this block will read of the next matrix, so that memory is not idle while blocks wait
// for each other.
__device__ __forceinline__ void prefetch_next(const char* next, const MatvecAhead& ahead) {
    const u32 first = ahead.row_tiles * real_block() / real_grid(), last = ahead.row_tiles * (real_block() + 1) / real_grid();
    const u32 bytes = min((last - first) * ahead.tile_bytes, ahead.bytes);
    const char* from = next + (u64)first * ahead.tile_bytes;
    for (u32 i = threadIdx.x * 128; i < bytes; i += blockDim.x * 128) prefetch_l2(from + i);
}

// x, times the norm's weights, to `row` with zeros up to whole chunks; the norm's scale is returned. The block leaves its
// part of the normalised row in `prepared`.
__device__ __forceinline__ f32 stage(f32* row, const Call& call) {
    const u32 in = call.in, end = (in + CHUNK * WIDE - 1) / (CHUNK * WIDE) * (CHUNK * WIDE);
    f32 sum = 0.f;
    for (u32 i = threadIdx.x * 4; i < end; i += blockDim.x * 4) {
        float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
        if (i < in) {
            v = *reinterpret_cast<const float4*>(call.x + i);
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            if (call.norm) {
                const float4 w = *reinterpret_cast<const float4*>(call.norm + i);
                const f32 offset = call.input.weight_offset;
                v.x *= w.x + offset, v.y *= w.y + offset, v.z *= w.z + offset, v.w *= w.w + offset;
            }
        }
        *reinterpret_cast<float4*>(row + staged(i)) = v;
    }
    if (!call.norm) {
        __syncthreads();
        return 1.f;
    }
    const f32 scale = rsqrtf(block_sum(sum) / in + call.input.eps);
    for (u32 i = real_block() * blockDim.x + threadIdx.x; i < in; i += real_grid() * blockDim.x) {
        call.prepared[i] = row[staged(i)] * scale;
    }
    return scale;
}

__device__ __forceinline__ void multiply(const Call& call) {
    f32* row = reinterpret_cast<f32*>(phase_shared());
    const u32 lane = threadIdx.x & 31, warps = blockDim.x >> 5, wide = call.in / WIDE, out = call.out;
    const u32 chunks = (wide + CHUNK - 1) / CHUNK;
    const u32 first = (u64)out * real_block() / real_grid() + (threadIdx.x >> 5);
    const u32 last = (u64)out * (real_block() + 1) / real_grid();
    release_next();
    uint4 loads[DEPTH];
    // The row and the chunk that are loaded; past the last row the last one again, and past a row's end its last load,
    // which x has zeros for.
    u32 n = first, chunk = 0;
    const uint4* at = call.weight + (u64)min(n, max(last, 1u) - 1) * wide;
    auto load = [&](u32 d) { loads[d] = load_stream(at + min(chunk * CHUNK + d * 32 + lane, wide - 1)); };
    auto next_chunk = [&]() {
        if (++chunk < chunks) return;
        chunk = 0, n += warps;
        at = call.weight + (u64)min(n, max(last, 1u) - 1) * wide;
    };
#pragma unroll
    for (u32 d = 0; d < DEPTH; d++) load(d);
    next_chunk();
    if (call.norm && threadIdx.x * 32 < call.in) prefetch_l2(call.norm + threadIdx.x * 32);
    wait_inputs();
    const f32 scale = stage(row, call);
    for (u32 now = first; now < last; now += warps) {
        f32* y = call.y + call.params.y_offset + now;
        f32 before = lane == 0 && call.params.accumulate ? *y : 0.f;
        if (lane == 0 && call.bias) before += call.bias[now];
        f32 sum = 0.f;
#pragma unroll 1
        for (u32 c = 0; c < chunks; c++) {
#pragma unroll
            for (u32 d = 0; d < DEPTH; d++) {
                const f32* x = row + (c * CHUNK + d * 32) * WIDE + lane * 4;
                f32 w[WIDE];
                unpack<DENSE_DTYPE>(w, loads[d]);
                load(d);
#pragma unroll
                for (u32 k = 0; k < WIDE; k += 4) {
                    const float4 v = *reinterpret_cast<const float4*>(x + k * 32);
                    sum += w[k] * v.x + w[k + 1] * v.y + w[k + 2] * v.z + w[k + 3] * v.w;
                }
            }
            next_chunk();
        }
        sum = warp_sum(sum);
        if (lane == 0) *y = before + sum * scale;
    }
    if (call.next) prefetch_next(call.next, call.ahead);
}

#ifndef STEP
KERNEL BOUNDS(512, 1) dense_row(const uint4* weight, const f32* bias, const f32* x, f32* y, u32 out, u32 in, LinearParams params) {
    multiply({weight, bias, x, y, out, in, {params.rows, params.y_stride, params.y_offset, params.accumulate}});
}
#else
KERNEL dense_row(const Call& call) { multiply(call); }
#endif
