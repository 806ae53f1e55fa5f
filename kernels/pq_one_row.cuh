// What the kernels of one row of x share: pq_row.cu, a phase of the persistent kernel, and pq_matvec.cu, a launch of its own.
// Both have blocks of PQ_WARPS warps that share the columns of a batch of PQ_BATCH row tiles, stage x in shared memory in the
// order of mma.sync's B operand, and add up the warps' sums there.
#if PQ_TOKENS == 1

constexpr u32 WARPS = PQ_WARPS, THREADS = WARPS * 32;
constexpr u32 BATCH = PQ_BATCH;             // row tiles between two barriers of a block's warps, even
// An iteration of a warp: two row tiles and, where registers suffice, two passes over the columns.
constexpr u32 AT_ONCE = 2, PASSES = PAIRS <= 16 ? 2 : 1, UNITS = AT_ONCE * PASSES;
constexpr u32 BATCH_ROWS = BATCH * TILE_ROWS;
constexpr u32 SUMS = BATCH_ROWS + 4;        // padded: 4 warps' sums of 8 rows are 32 banks
static_assert(2 * WARPS * SUMS * 4 == PQ_SUMS_SHARED, "what the host gives a block");
constexpr u32 WORDS = PAIRS * 4;            // pairs of weights of a tile's row

// x of a tile in shared memory: for four pairs of a lane 8 slots of 4 words (the operand's columns, f16 and f16 remainder,
// then the lanes) in PITCH words. The address of pairs 4 n .. 4 n + 3 of the columns; their remainders follow 16 words later.
template <u32 PITCH>
__device__ __forceinline__ u32* staged_at(u32* stage, u32 n) {
    const u32 tile = n / PAIRS, t = n % PAIRS / (PAIRS / 4), p = n % (PAIRS / 4);
    return stage + (tile * (PAIRS / 4) + p) * PITCH + t * 4;
}

// Stages x of code tiles `first` to `first + tiles` unchanged, BATCHED pairs a thread at a time. Codebook entries are padded
// to 2, 4 or 8 values, so some pairs hold one value or none.
template <u32 PITCH, u32 BATCHED>
__device__ __forceinline__ void stage_row(u32* stage, const f32* x, u32 in, u32 first, u32 tiles) {
    const u32 count = tiles * WORDS;
    for (u32 i0 = threadIdx.x; i0 < count; i0 += BATCHED * THREADS) {
        f32 a[BATCHED], b[BATCHED];
#pragma unroll
        for (u32 k = 0; k < BATCHED; k++) {
            const u32 i = i0 + k * THREADS, word = i % WORDS;
            const u32 code = (first + i / WORDS) * TILE_CODES + (ENTRY == 1 ? 2 * word : word / ENTRY_WORDS);
            const u32 element = ENTRY == 1 ? 0 : word % ENTRY_WORDS * 2;
            const u32 column = code * D + element;
            a[k] = i < count && element < D && column < in ? x[column] : 0.f;
            b[k] = i < count && (ENTRY == 1 || element + 1 < D) && column + 1 < in ? x[column + 1] : 0.f;
        }
#pragma unroll
        for (u32 k = 0; k < BATCHED; k++) {
            const u32 i = i0 + k * THREADS;
            if (i >= count) continue;
            const u32 high = pack_f16(a[k], b[k]);
            u32* to = staged_at<PITCH>(stage, i / 4) + i % 4;
            *to = high;
            to[16] = pack_f16(a[k] - low_f16(high), b[k] - high_f16(high));
        }
    }
}

// A tile's x as the operand; `staged` is where the lane's part of it begins.
template <u32 PITCH>
__device__ __forceinline__ void load_operand(u32 (&b)[STEPS][2], const u32* staged) {
#pragma unroll
    for (int i = 0; i < PAIRS / 4; i++) {
        const uint4 v = *reinterpret_cast<const uint4*>(staged + i * PITCH);
        b[2 * i][0] = v.x, b[2 * i][1] = v.y, b[2 * i + 1][0] = v.z, b[2 * i + 1][1] = v.w;
    }
}

// The sum over the warps of what they left for a row, of four threads that ask for it together.
__device__ __forceinline__ f32 sum_of_warps(const f32* partial) {
    f32 sum = 0.f;
#pragma unroll
    for (u32 w = 0; w < WARPS; w += 4) sum += partial[(w + threadIdx.x % 4) * SUMS];
    sum += __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
}
#endif
