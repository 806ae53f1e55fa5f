// What every kernel shares: number types, conversions in PTX (NVRTC comes without cuda_fp16.h), reductions, the cache, and
// programmatic dependent launch. The parameter structs of ops.rs and the specialisation constants
// stand before this text, and what of abi.rs the kernels and the host agree on.

#ifndef PERSISTENT
#define KERNEL extern "C" __global__ void
#define BOUNDS(...) __launch_bounds__(__VA_ARGS__)
// Launch bounds of a kernel with one block a multiprocessor. With `room` it leaves registers for one block of the next
// kernel (256 threads, 32 registers), which otherwise starts late, crowded on the first multiprocessors that are free.
#if __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1204
#define BOUNDS_ALONE(threads, room) __maxnreg__((room) ? 57344 / (threads) : (threads) > 256 ? 65536 / (threads) : 255)
#else
#define BOUNDS_ALONE(threads, room) __launch_bounds__(threads, 1)
#endif

extern __shared__ __align__(16) char dynamic_shared[];

// The block and grid of a kernel that is not run through a virtual grid; see persistent.cuh.
__device__ __forceinline__ u32 real_block() { return blockIdx.x; }
__device__ __forceinline__ u32 real_grid() { return gridDim.x; }

// A kernel's dynamic shared memory.
__device__ __forceinline__ char* phase_shared() { return dynamic_shared; }
#endif

// Element types of dense weights, as numbered by the host.
enum Dtype { F32 = 0, F16 = 1, BF16 = 2 };

#ifndef PERSISTENT
// Programmatic dependent launch (Hopper): a kernel may start while the previous one still runs. Only after wait_inputs() may
// it read what an earlier kernel wrote, or write anything; weights may be read before it.
__device__ __forceinline__ void wait_inputs() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel start once every block of this one has called release_next() or ended.
__device__ __forceinline__ void release_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#endif

__device__ __forceinline__ f32 from_f16(u16 h) {
    f32 f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
}

__device__ __forceinline__ f32 from_bf16(u16 h) { return __uint_as_float((u32)h << 16); }

__device__ __forceinline__ u16 to_f16(f32 f) {
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

// Two f16 in a word, `low` in the lower half.
__device__ __forceinline__ u32 pack_f16(f32 low, f32 high) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

__device__ __forceinline__ u16 to_bf16(f32 f) {
    u16 h;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
}

// Two f16 or bf16 in a word, as `dtype` says.
__device__ __forceinline__ u32 pack_half(f32 low, f32 high, u32 dtype) {
    return dtype == F16 ? pack_f16(low, high) : to_bf16(low) | (u32)to_bf16(high) << 16;
}

__device__ __forceinline__ f32 low_f16(u32 pair) { return from_f16((u16)pair); }
__device__ __forceinline__ f32 high_f16(u32 pair) { return from_f16((u16)(pair >> 16)); }

// Loads through the read-only path, past L1: weights are read once.
__device__ __forceinline__ uint4 load_stream(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
__device__ __forceinline__ uint2 load_stream(const uint2* p) {
    uint2 v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
    return v;
}
__device__ __forceinline__ u32 load_stream(const u32* p) {
    u32 v;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(v) : "l"(p));
    return v;
}

// Begins to copy 16 bytes to an address in shared memory.
__device__ __forceinline__ void copy_async(u32 to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void prefetch_l2(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Index of `lane`'s word `w` in a tile of codes of `bits` bits (pq_tile.cuh).
__device__ __forceinline__ u32 tile_word(u32 bits, u32 lane, u32 w) {
    const u32 quads = bits / 4 * 4;
    if (w < quads) return (w / 4) * 128 + lane * 4 + w % 4;
    const u32 rest = w - quads;
    if ((bits & 2) && rest < 2) return quads * 32 + lane * 2 + rest;
    return (bits & ~1u) * 32 + lane;
}

// Unpacks 16 bytes of dense weights to f32.
template <int DTYPE, int COUNT>
__device__ __forceinline__ void unpack(f32 (&w)[COUNT], uint4 v) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if constexpr (DTYPE == F32) {
            w[i] = __uint_as_float(words[i]);
        } else if constexpr (DTYPE == F16) {
            w[2 * i] = low_f16(words[i]), w[2 * i + 1] = high_f16(words[i]);
        } else {
            w[2 * i] = __uint_as_float(words[i] << 16), w[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
        }
    }
}

// d += a b for a 16x16 tile of f16 (row), a 16x8 tile of f16 (col) and a 16x8 tile of f32. Lane (g, t) = (lane / 4,
// lane % 4) holds a: rows g, g+8, g, g+8 at columns 2t, 2t, 2t+8, 2t+8 (pairs); b: rows 2t, 2t+8 (pairs) of column g;
// d: rows g, g, g+8, g+8 at columns 2t, 2t+1, 2t, 2t+1.
__device__ __forceinline__ void mma(f32 (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ f32 warp_sum(f32 v) {
#pragma unroll
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

// The sum over a block of up to 1024 threads (whole warps), in every thread. Every thread must call it.
__device__ __forceinline__ f32 block_sum(f32 v) {
    __shared__ f32 part[32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
    v = warp_sum(v);
    __syncthreads();
    if (lane == 0) part[warp] = v;
    __syncthreads();
    return warp_sum(lane < warps ? part[lane] : 0.f);
}

// Sine and cosine within 1e-6, in short code: x is reduced to [-pi, pi], where the fast intrinsics are accurate.
__device__ __forceinline__ void sine_cosine(f32 x, f32& sine, f32& cosine) {
    const f32 turns = rintf(x * 0.15915494f);
    x = fmaf(turns, -6.28125f, x);
    x = fmaf(turns, -1.93500518798828125e-3f, x);
    x = fmaf(turns, -3.0199159819e-7f, x);
    sine = __sinf(x), cosine = __cosf(x);
}

__device__ __forceinline__ f32 sigmoid(f32 x) { return 1.f / (1.f + __expf(-x)); }
__device__ __forceinline__ f32 silu(f32 x) { return x * sigmoid(x); }

// GELU as approximated by tanh, of which (1 + tanh(u)) / 2 is sigmoid(2 u), or SiLU.
__device__ __forceinline__ f32 activation(f32 x, u32 gelu) {
    return x * sigmoid(gelu ? 1.5957691216f * (x + 0.044715f * x * x * x) : x);
}

// Element type of the key and value cache.
#ifdef CACHE_F16
typedef u16 Cache;
__device__ __forceinline__ Cache to_cache(f32 v) { return to_f16(v); }
__device__ __forceinline__ f32 from_cache(Cache v) { return from_f16(v); }
#else
typedef f32 Cache;
__device__ __forceinline__ Cache to_cache(f32 v) { return v; }
__device__ __forceinline__ f32 from_cache(Cache v) { return v; }
#endif

// Index of the first element of a position's key or value in a cache `[slots, kv_heads, context, head_dim]`; params: those of
// rope_cache or attention.
template <class Params> __device__ __forceinline__ u64 cache_row(const Params& params, u32 slot, u32 kv, u32 position, u32 dim) {
    return (((u64)slot * params.kv_heads + kv) * params.context + position) * dim;
}

// What queries at a position are multiplied by.
__device__ __forceinline__ f32 query_scale(const RopeCacheParams& params, u32 position) {
    return params.query_beta ? 1.f + params.query_beta * logf(1.f + floorf(position / params.query_context)) : 1.f;
}

// Stores a linear layer's result: adds the bias and, if params.accumulate, the value that is there already.
__device__ __forceinline__ void store_linear(f32* y, const f32* bias, u32 token, u32 n, f32 v, const LinearParams& params) {
    f32* at = y + (u64)token * params.y_stride + params.y_offset + n;
    if (bias) v += bias[n];
    *at = params.accumulate ? *at + v : v;
}
