// What kernels do to rows: the block Hadamard rotation, spans of a row that a warp holds, and a second copy of the output in
// the layout that the next matrix multiplies. Stands behind prelude.cuh before every source.

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
