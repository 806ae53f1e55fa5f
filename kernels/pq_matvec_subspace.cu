// y = W x for W with a codebook per subspace and few rows of x (see pq_matvec.cu). A block owns 64 subspaces, whose
// codebooks fit shared memory, and a range of rows; pq_reduce adds the column sums up.

// The B operand for columns `kt`'s tile: rows of x beyond `rows` and columns beyond `in` are zero.
__device__ __forceinline__ void load_x(u32 (&b)[NT][STEPS][2], const f32* x, u32 rows, u32 in, u32 kt, u32 lane) {
    const u32 g = lane / 4, first = (kt * 4 + lane % 4) * LANE_CODES * D;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        const u32 token = SPLIT ? nt * 4 + g / 2 : nt * 8 + g;
        const f32* row = x + (u64)token * in;
        f32 v[LANE_CODES * D];
#pragma unroll
        for (int i = 0; i < LANE_CODES * D; i += 4) {
            const u32 column = first + i;
            if (in % 4 == 0) {
                const float4 q = token < rows && column < in ? *reinterpret_cast<const float4*>(row + column)
                                                             : make_float4(0.f, 0.f, 0.f, 0.f);
                v[i] = q.x, v[i + 1] = q.y, v[i + 2] = q.z, v[i + 3] = q.w;
            } else {
#pragma unroll
                for (int k = 0; k < 4; k++) v[i + k] = token < rows && column + k < in ? row[column + k] : 0.f;
            }
        }
#pragma unroll
        for (int p = 0; p < PAIRS; p++) {
            constexpr int PER_CODE = ENTRY / 2;
            const int code = ENTRY == 1 ? 2 * p : p / (PER_CODE ? PER_CODE : 1);
            const int element = ENTRY == 1 ? 0 : p % (PER_CODE ? PER_CODE : 1) * 2;
            f32 low = element < D ? v[code * D + element] : 0.f;
            f32 high = ENTRY == 1 || element + 1 < D ? v[code * D + element + 1] : 0.f;
            u32 word = pack_f16(low, high);
            if (SPLIT && g % 2) word = pack_f16(low - low_f16(word), high - high_f16(word));
            b[nt][p / 2][p % 2] = word;
        }
    }
}

KERNEL BOUNDS(PQ_WARPS * 32, 1)
pq_matvec_subspace(const u32* codes, const u32* codebooks, const f32* x, f32* partial, u32 out, u32 in, u32 subspaces,
                   u32 code_tiles, LinearParams params) {
    char* table = dynamic_shared;
    constexpr u32 BOOK_BYTES = (1u << BITS) * ENTRY_BYTES;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = blockDim.x >> 5, kt = blockIdx.x;
    const u32 row_tiles = (out + TILE_ROWS - 1) / TILE_ROWS;
    const u32 first = row_tiles * blockIdx.y / gridDim.y, last = row_tiles * (blockIdx.y + 1) / gridDim.y;
    release_next();

    u32 ahead = first + warp;
    auto fetch = [&](u32 (&w)[BITS]) {
        if (ahead < last) load_tile(w, codes + ((u64)ahead * code_tiles + kt) * TILE_WORDS, lane);
        ahead += warps;
    };
    u32 even[BITS], odd[BITS];
    fetch(even);
    fetch(odd);
    const u32 books = min((u32)TILE_CODES, subspaces - kt * TILE_CODES);
    const uint4* source = reinterpret_cast<const uint4*>(codebooks + (u64)kt * TILE_CODES * (BOOK_BYTES / 4));
#pragma unroll 4
    for (u32 i = threadIdx.x; i < TILE_CODES * BOOK_BYTES / 16; i += blockDim.x) {
        // Codebooks beyond the last are zeros: 0 x must not be NaN.
        reinterpret_cast<uint4*>(table)[i] =
            i < books * BOOK_BYTES / 16 ? load_stream(source + i) : make_uint4(0, 0, 0, 0);
    }
    __syncthreads();
    wait_inputs();

    u32 b[NT][STEPS][2];
    load_x(b, x, params.rows, in, kt, lane);
    const u32 low = 0, entries = (u32)__cvta_generic_to_shared(table) + lane % 4 * (LANE_CODES * BOOK_BYTES);
    auto step = [&](u32 (&w)[BITS], u32 tile) {
        f32 acc[NT][4] = {};
        multiply_tile<ENTRY_LOG>(acc, w, b, low, [&](int i) { return entries + i * BOOK_BYTES; });
        fetch(w);
        store_sums(acc, lane, [&](u32 token, u32 row, f32 v) {
            const u32 n = tile * TILE_ROWS + row;
            if (token < params.rows && n < out) partial[((u64)kt * params.rows + token) * out + n] = v;
        });
    };
    for (u32 tile = first + warp; tile < last; tile += 2 * warps) {
        step(even, tile);
        if (tile + warps < last) step(odd, tile + warps);
    }
}
