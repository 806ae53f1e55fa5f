// What every kernel shares: number types, conversions in PTX (NVRTC comes without cuda_fp16.h), reductions, the block
// Hadamard rotation, and programmatic dependent launch. The parameter structs of ops.rs and the specialisation constants
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

// The rotation's sign of element i: one bit of Murmur3's 32-bit finaliser, the same as pq::rotate::sign.
__device__ __forceinline__ f32 rotation_sign(u32 i) {
    u32 h = i ^ 0x9e3779b9u;
    h = (h ^ (h >> 16)) * 0x85ebca6bu;
    h = (h ^ (h >> 13)) * 0xc2b2ae35u;
    return ((h ^ (h >> 16)) & 1u) ? -1.f : 1.f;
}

// Index in shared memory of element i of a row to rotate: padded so that rotate_shared() has no bank conflicts.
__device__ __forceinline__ u32 padded(u32 i) { return i + (i >> 6) * 8; }

// Butterflies of distances half, 2 half and 4 half, eight elements a thread.
__device__ __forceinline__ void butterflies_of_8(f32* v, u32 count, u32 half) {
    for (u32 p = threadIdx.x; p < count / 8; p += blockDim.x) {
        const u32 low = p & (half - 1), first = (p - low) * 8 + low;
        f32 e[8];
        if (half == 1) {
            const float4* at = reinterpret_cast<const float4*>(v + padded(first));
            const float4 a = at[0], b = at[1];
            e[0] = a.x, e[1] = a.y, e[2] = a.z, e[3] = a.w, e[4] = b.x, e[5] = b.y, e[6] = b.z, e[7] = b.w;
        } else {
#pragma unroll
            for (u32 k = 0; k < 8; k++) e[k] = v[padded(first + k * half)];
        }
#pragma unroll
        for (u32 apart = 1; apart < 8; apart *= 2) {
#pragma unroll
            for (u32 k = 0; k < 8; k++) {
                if (k & apart) continue;
                const f32 a = e[k], b = e[k + apart];
                e[k] = a + b, e[k + apart] = a - b;
            }
        }
        if (half == 1) {
            float4* at = reinterpret_cast<float4*>(v + padded(first));
            at[0] = make_float4(e[0], e[1], e[2], e[3]), at[1] = make_float4(e[4], e[5], e[6], e[7]);
        } else {
#pragma unroll
            for (u32 k = 0; k < 8; k++) v[padded(first + k * half)] = e[k];
        }
    }
}

// Multiplies blocks of `block` elements by the Hadamard matrix (times sqrt(block)): `count` elements in shared memory, v
// 16-byte aligned, element i at padded(i). The whole thread block takes part; it begins and ends with a barrier.
__device__ __forceinline__ void hadamard_shared(f32* v, u32 count, u32 block) {
    __syncthreads();
    u32 half = 1;
#pragma unroll 1
    for (; half * 8 <= block; half *= 8) {
        butterflies_of_8(v, count, half);
        __syncthreads();
    }
#pragma unroll 1
    for (; half < block; half *= 2) {
        for (u32 p = threadIdx.x; p < count / 2; p += blockDim.x) {
            const u32 i = (p & ~(half - 1)) + p;
            f32 &a = v[padded(i)], &b = v[padded(i + half)];
            const f32 sum = a + b;
            b = a - b, a = sum;
        }
        __syncthreads();
    }
}

// Rotates such elements, which begin at element `first` of a row, or rotates them back.
template <bool INVERSE>
__device__ __forceinline__ void rotate_shared(f32* v, u32 first, u32 count, u32 block) {
    const f32 norm = rsqrtf((f32)block);
    if (!INVERSE) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) v[padded(i)] *= rotation_sign(first + i) * norm;
    }
    hadamard_shared(v, count, block);
    if (INVERSE) {
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) v[padded(i)] *= rotation_sign(first + i) * norm;
        __syncthreads();
    }
}

// A warp's span of a row, SPAN_EACH elements a lane: e[k] is element 32 k + lane, or, after hadamard_span(), 16 lane + k.
constexpr u32 SPAN_EACH = SPAN / 32;
constexpr u32 SPAN_STAGE = 576; // words of shared memory for a span: 4 of padding after every 32, against bank conflicts
constexpr u32 SPAN_WARPS = 4;   // warps of a block that have a span in kernels that the persistent kernel runs, at most

// Loads elements 32 k + lane of the span that begins at element `first` of a row of `count`; zeros beyond.
__device__ __forceinline__ void load_span(f32 (&v)[SPAN_EACH], const f32* x, u32 first, u32 count) {
    const u32 at = first + threadIdx.x % 32;
#pragma unroll
    for (u32 k = 0; k < SPAN_EACH; k++) v[k] = at + 32 * k < count ? x[at + 32 * k] : 0.f;
}

// Butterflies between a lane's elements. Neighbours in k are `bit` apart in the span.
__device__ __forceinline__ void butterflies(f32 (&e)[SPAN_EACH], u32 bit, u32 rotate) {
#pragma unroll
    for (u32 apart = 1; apart < SPAN_EACH; apart *= 2) {
        if (bit * apart >= rotate) continue;
#pragma unroll
        for (u32 k = 0; k < SPAN_EACH; k++) {
            if (k & apart) continue;
            const f32 a = e[k], b = e[k + apart];
            e[k] = a + b, e[k + apart] = a - b;
        }
    }
}

// Multiplies a span's blocks of `rotate` elements (at most 512; 0: none) by the Hadamard matrix (times sqrt(rotate)).
// Elements come at 32 k + lane and are left at 16 lane + k.
__device__ __forceinline__ void hadamard_span(f32 (&e)[SPAN_EACH], f32* stage, u32 rotate) {
    const u32 lane = threadIdx.x % 32;
    butterflies(e, 32, rotate);
#pragma unroll
    for (u32 k = 0; k < SPAN_EACH; k++) stage[36 * k + lane] = e[k];
    __syncwarp();
    const float4* at = reinterpret_cast<const float4*>(stage + 16 * lane + lane / 2 * 4);
#pragma unroll
    for (u32 k = 0; k < SPAN_EACH; k += 4) {
        const float4 v = at[k / 4];
        e[k] = v.x, e[k + 1] = v.y, e[k + 2] = v.z, e[k + 3] = v.w;
    }
    __syncwarp();
    butterflies(e, 1, rotate);
    if (rotate <= 16) return;
#pragma unroll
    for (u32 k = 0; k < SPAN_EACH; k++) {
        const f32 other = __shfl_xor_sync(~0u, e[k], 1);
        e[k] = other + (lane & 1 ? -e[k] : e[k]);
    }
}

// Rotates a span that begins at element `first` of a row; layout as hadamard_span().
__device__ __forceinline__ void rotate_span(f32 (&e)[SPAN_EACH], f32* stage, u32 first, u32 rotate) {
    const f32 norm = rsqrtf((f32)rotate);
    if (rotate) {
#pragma unroll
        for (u32 k = 0; k < SPAN_EACH; k++) e[k] *= rotation_sign(first + 32 * k + threadIdx.x % 32) * norm;
    }
    hadamard_span(e, stage, rotate);
}

// Stores a span of a row of `count` whose elements are at 16 lane + k, 16 bytes a lane at a time.
__device__ __forceinline__ void store_span(f32* y, const f32 (&e)[SPAN_EACH], f32* stage, u32 first, u32 count) {
    const u32 lane = threadIdx.x % 32;
    float4* at = reinterpret_cast<float4*>(stage + 16 * lane + lane / 2 * 4);
#pragma unroll
    for (u32 k = 0; k < SPAN_EACH; k += 4) at[k / 4] = make_float4(e[k], e[k + 1], e[k + 2], e[k + 3]);
    __syncwarp();
#pragma unroll
    for (u32 k = 0; k < SPAN_EACH / 4; k++) {
        const u32 i = 128 * k + 4 * lane;
        const float4 v = *reinterpret_cast<const float4*>(stage + i + i / 32 * 4);
        if (count % 4 == 0) {
            if (first + i < count) *reinterpret_cast<float4*>(y + first + i) = v;
        } else {
            const f32 four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                if (first + i + j < count) y[first + i + j] = four[j];
            }
        }
    }
    __syncwarp();
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

// A second copy of a kernel's output rows in the layout that the next matrix multiplies; `at` null: none. With `cols`, rows
// of `cols` f16 or bf16 (dtype), by store_span() only. With cols 0, the layout of pack_rows.cu, for codes of 1 << log_d
// inputs that fill their tiles; the kernel is then launched for as many rows as the layout has columns.
struct Packed : PackedRows {
    // Stores inputs first .. first + 7 of a row in the layout of pack_rows.cu.
    __device__ __forceinline__ void store(u32 row, u32 first, const f32 (&v)[8]) const {
        const u32 tile = first >> (6 + log_d), t = first >> (4 + log_d) & 3, piece = (first >> 3) & ((2 << log_d) - 1);
        const u32 column = split ? 2 * row : row;
        uint4* to = at + ((((tile * groups + column / 8) << (1 + log_d)) + piece) * 32 + column % 8 * 4 + t);
        u32 high[4], low[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            high[i] = pack_f16(v[2 * i], v[2 * i + 1]);
            low[i] = pack_f16(v[2 * i] - low_f16(high[i]), v[2 * i + 1] - high_f16(high[i]));
        }
        to[0] = make_uint4(high[0], high[1], high[2], high[3]);
        if (split) to[4] = make_uint4(low[0], low[1], low[2], low[3]);
    }

    // Stores `count` inputs of a row from `first` on, by a thread block; both multiples of 8; value(i) is input first + i.
    template <class Value>
    __device__ __forceinline__ void store_all(u32 row, u32 first, u32 count, Value value) const {
        for (u32 i = threadIdx.x * 8; i < count; i += blockDim.x * 8) {
            f32 v[8];
#pragma unroll
            for (u32 k = 0; k < 8; k++) v[k] = value(i + k);
            store(row, first + i, v);
        }
    }

    // Stores a span of a row of `count` whose elements are at 16 lane + k, by a warp.
    __device__ __forceinline__ void store_span(u32 row, const f32 (&e)[SPAN_EACH], u32 first, u32 count) const {
#pragma unroll
        for (u32 half = 0; half < SPAN_EACH; half += 8) {
            const u32 column = first + SPAN_EACH * (threadIdx.x % 32) + half;
            f32 v[8];
#pragma unroll
            for (u32 k = 0; k < 8; k++) v[k] = e[half + k];
            if (column >= count) break;
            if (!cols) {
                store(row, column, v);
                continue;
            }
            u32 words[4];
#pragma unroll
            for (u32 i = 0; i < 4; i++) words[i] = pack_half(v[2 * i], v[2 * i + 1], dtype);
            at[((u64)row * cols + column) / 8] = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
};
