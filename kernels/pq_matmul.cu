// y = W x for product-quantized W and many rows of x: pq_decode decodes the codes of a slab of W's rows to f16 scratch,
// which cuBLAS multiplies. Also pq_reduce, which adds up split-K parts.

#ifdef PQ_D
// Transposes a 4 x 4 matrix over four lanes: lane t gets element t of each lane's four, in the order of the lanes.
__device__ __forceinline__ void transpose4(uint4 (&v)[4], u32 lane) {
    auto exchange = [&](uint4& a, uint4& b, u32 bit) {
        const bool upper = lane & bit;
        uint4 v = upper ? a : b;
        v.x = __shfl_xor_sync(~0u, v.x, bit), v.y = __shfl_xor_sync(~0u, v.y, bit);
        v.z = __shfl_xor_sync(~0u, v.z, bit), v.w = __shfl_xor_sync(~0u, v.w, bit);
        if (upper) a = v;
        else b = v;
    };
    exchange(v[0], v[1], 1), exchange(v[2], v[3], 1);
    exchange(v[0], v[2], 2), exchange(v[1], v[3], 2);
}

// Stores 16 bytes in one instruction: of four conditional stores the compiler split one into four of 4 bytes.
__device__ __forceinline__ void store16(u16* to, uint4 v) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ u32 times(u32 pair, u32 scale) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(pair), "r"(scale));
    return d;
}

// Decodes W's rows `first .. first + rows` to f16 [rows, in]. Grid: (blocks). Warps take a slab's tiles in turn, with the
// codes of AHEAD tiles in flight; four lanes write 64 contiguous bytes.
// Bound: the stores, half of the time. H200, [4096 x 4096] at 2-256 (33 MB of f16): 15.1 us. Versions:
// docs/log/cuda-prefill.md.
KERNEL BOUNDS(256, PAIRS <= 16 ? 2 : 1)
pq_decode(const u32* codes, const u32* codebooks, const u16* scales, u16* w_out, u32 first, u32 rows, u32 in,
          u32 code_tiles, u32 group) {
    constexpr u32 AHEAD = PAIRS <= 16 ? 2 : 1;
    const u32 lane = threadIdx.x & 31, t = lane % 4, warps = blockDim.x >> 5, onward = gridDim.x * warps;
    const u32 tiles = (rows + TILE_ROWS - 1) / TILE_ROWS * code_tiles;
    const u32* at = codes + (u64)first / TILE_ROWS * code_tiles * TILE_WORDS;
    release_next();
    u32 ahead[AHEAD][BITS];
    auto fetch = [&](u32 k, u32 tile) {
        if (tile < tiles) load_tile(ahead[k], at + (u64)tile * TILE_WORDS, lane);
    };
    u32 next = blockIdx.x * warps + (threadIdx.x >> 5);
#pragma unroll
    for (u32 k = 0; k < AHEAD; k++) fetch(k, next + k * onward);
#ifdef PQ_REPLICAS
    fill_table(table_start(), codebooks);
    __syncthreads();
#endif
    wait_inputs();
    auto decode = [&](u32 tile, const u32 (&w)[BITS]) {
        const u32 kt = tile % code_tiles, tile_column = kt * TILE_CODES * D;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 row = tile / code_tiles * TILE_ROWS + half * 8 + lane / 4;
            u32 pairs[PAIRS];
#ifdef PQ_REPLICAS
            pairs_of<TABLE_LOG>(pairs, w, half * LANE_CODES, lane_offset(lane), [&](int) { return TABLE_AT; });
#else
            const char* books = reinterpret_cast<const char*>(codebooks);
            const u32 j = kt * TILE_CODES + t * LANE_CODES, last = ((in + D - 1) / D - 1) / group;
            pairs_of<ENTRY_LOG>(pairs, w, half * LANE_CODES, 0, [&](int i) {
                return books + ((u64)min((j + i) / group, last) << (BITS + ENTRY_LOG));
            });
#endif
            // The row's scale twice in a word; 1.0 without scales.
            const u32 scale = (scales && row < rows ? scales[first + row] : 0x3c00u) * 0x10001u;
#pragma unroll
            for (int p = 0; p < PAIRS; p++) pairs[p] = times(pairs[p], scale);
            u16* to = w_out + (u64)row * in + tile_column;
            if (D == ENTRY && PAIRS >= 16 && in % 8 == 0) {
#pragma unroll
                for (int p = 0; p + 15 < PAIRS; p += 16) {
                    uint4 v[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) v[i] = make_uint4(pairs[p + 4 * i], pairs[p + 4 * i + 1], pairs[p + 4 * i + 2], pairs[p + 4 * i + 3]);
                    transpose4(v, lane);
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const u32 column = i * LANE_CODES * D + 2 * p + t * 8;
                        if (row < rows && tile_column + column < in) store16(to + column, v[i]);
                    }
                }
            } else if (row < rows) {
#pragma unroll
                for (int i = 0; i < LANE_CODES * D; i++) {
                    const int half_word = i / D * ENTRY + i % D;
                    const u32 column = t * LANE_CODES * D + i;
                    if (tile_column + column < in) to[column] = (u16)(pairs[half_word / 2] >> (half_word % 2 * 16));
                }
            }
        }
    };
#pragma unroll 1
    for (; next < tiles; next += AHEAD * onward) {
#pragma unroll
        for (u32 k = 0; k < AHEAD; k++) {
            const u32 tile = next + k * onward;
            if (tile >= tiles) break;
            u32 w[BITS];
#pragma unroll
            for (int i = 0; i < BITS; i++) w[i] = ahead[k][i];
            fetch(k, tile + AHEAD * onward);
            decode(tile, w);
        }
    }
}
#else

// y = scales * sum over k of partial[k], plus bias and residual. Grid: (out / 32, rows); 8 warps share the parts of 32
// outputs.
KERNEL pq_reduce(const f32* partial, const u16* scales, const f32* bias, f32* y, u32 out, u32 parts, LinearParams params) {
    release_next();
    wait_inputs();
    __shared__ f32 sums[8][32];
    const u32 n = blockIdx.x * 32 + threadIdx.x % 32, k0 = threadIdx.x / 32, token = blockIdx.y;
    f32 sum = 0.f;
    if (n < out) {
#pragma unroll 4
        for (u32 k = k0; k < parts; k += 8) sum += partial[((u64)k * params.rows + token) * out + n];
    }
    sums[k0][threadIdx.x % 32] = sum;
    __syncthreads();
    if (k0 || n >= out) return;
#pragma unroll
    for (int k = 1; k < 8; k++) sum += sums[k][threadIdx.x];
    store_linear(y, bias, token, n, scales ? sum * from_f16(scales[n]) : sum, params);
}
#endif
