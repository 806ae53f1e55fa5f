// y = W x for product-quantized W and many rows of x: the codes of a slab of W's rows are decoded to f16 scratch that
// stays in L2, which cuBLAS multiplies. And the pieces that other layouts of W and x need on the way.

#ifdef PQ_D
// W's rows `first .. first + rows` as f16 [rows, in]. A warp a tile. Grid: (code tiles / warps, row tiles).
KERNEL pq_decode(const u32* codes, const u32* codebooks, const u16* scales, u16* w_out, u32 first, u32 rows, u32 in,
                 u32 code_tiles, u32 group) {
    const u32 lane = threadIdx.x & 31, kt = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    release_next();
#ifdef PQ_REPLICAS
    char* table = table_start();
    fill_table(table, codebooks);
    __syncthreads();
#endif
    wait_inputs();
    if (kt >= code_tiles) return;
    for (u32 tile = blockIdx.y; tile * TILE_ROWS < rows; tile += gridDim.y) {
        u32 w[BITS];
        load_tile(w, codes + ((u64)(first / TILE_ROWS + tile) * code_tiles + kt) * TILE_WORDS, lane);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 row = tile * TILE_ROWS + half * 8 + lane / 4;
            const u32 j = (kt * 4 + lane % 4) * LANE_CODES, column = j * D;
            u32 pairs[PAIRS];
#ifdef PQ_REPLICAS
            pairs_of<TABLE_LOG>(pairs, w, half * LANE_CODES, lane_offset(lane), [&](int) { return TABLE_AT; });
#else
            const char* books = reinterpret_cast<const char*>(codebooks);
            const u32 last = ((in + D - 1) / D - 1) / group;
            pairs_of<ENTRY_LOG>(pairs, w, half * LANE_CODES, 0, [&](int i) {
                return books + ((u64)min((j + i) / group, last) << (BITS + ENTRY_LOG));
            });
#endif
            if (row >= rows) continue;
            const f32 scale = scales ? from_f16(scales[first + row]) : 1.f;
#pragma unroll
            for (int p = 0; p < PAIRS; p++) pairs[p] = pack_f16(low_f16(pairs[p]) * scale, high_f16(pairs[p]) * scale);
            u16* to = w_out + (u64)row * in + column;
            if (D == ENTRY && in % 8 == 0) {
#pragma unroll
                for (int p = 0; p + 3 < PAIRS; p += 4) {
                    if (column + 2 * p < in) {
                        *reinterpret_cast<uint4*>(to + 2 * p) = make_uint4(pairs[p], pairs[p + 1], pairs[p + 2], pairs[p + 3]);
                    }
                }
            } else {
#pragma unroll
                for (int i = 0; i < LANE_CODES * D; i++) {
                    const int at = i / D * ENTRY + i % D;
                    if (column + i < in) to[i] = (u16)(pairs[at / 2] >> (at % 2 * 16));
                }
            }
        }
    }
}

// Canonical rows of packed codes to tiles: a thread a code, by atomic or, on zeroed tiles.
KERNEL pq_tiles(const unsigned char* rows, u32* tiles, u32 first, u32 count, u32 subspaces, u32 row_bytes, u32 code_tiles) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u32 n = i / subspaces, j = i % subspaces;
    if (n >= count) return;
    const u64 bit = (u64)j * BITS;
    const unsigned char* at = rows + (u64)n * row_bytes + bit / 8;
    u32 raw = 0;
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        if (bit / 8 + k < row_bytes) raw |= (u32)at[k] << (8 * k);
    }
    const u32 code = (raw >> (bit % 8)) & ((1u << BITS) - 1u);
    const u32 row = first + n, lane = (row % 8) * 4 + (j % TILE_CODES) / LANE_CODES;
    const u32 to = ((row % TILE_ROWS) / 8 * LANE_CODES + j % LANE_CODES) * BITS;
    u32* tile = tiles + ((u64)(row / TILE_ROWS) * code_tiles + j / TILE_CODES) * TILE_WORDS;
    atomicOr(tile + plane_word(lane, to / 32), code << (to % 32));
    if (to % 32 + BITS > 32) atomicOr(tile + plane_word(lane, to / 32 + 1), code >> (32 - to % 32));
}
#else

// y = scales * sum over k of partial[k]. A thread an output.
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
