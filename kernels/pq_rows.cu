// y = W x for product-quantized W with one codebook and a few rows of x (2 to 16).
//
// x comes packed (pack_rows.cu) as the B operand of mma.sync: a column a row of x, or, for up to 4 rows, two columns (f16
// and f16 remainder), so that no precision is lost. An mma takes eight columns at the price of one, so the product costs
// what it costs for one row: a lane looks up its 32 codes of a tile in shared memory (fill_table), which gives the A operand
// as it is. Each lane has four tiles of codes in flight.
//
// A block owns a contiguous range of row tiles, its warps share the columns: WARPS x PASSES code tiles, whose x stays in
// registers for all of the block's rows. More columns take several rounds, and every block reads x: with few rows a block
// pq_matmul_tiles.cu is faster, which tuning finds out (tune.rs). The warps' sums meet in shared memory: no atomics, no
// memset, deterministic. First codes and table are loaded before wait_inputs(). At most 112 registers, so that a block of
// the next kernel fits beside (BOUNDS_ALONE).
//
// Bound: memory and table lookups up to 8 rows. H200, a llama3-8b layer's matrices at 2-256: 46.9 us by 4 rows, 86.9 by 16;
// 3,182 tok/s by 8 sequences. Versions: docs/log/cuda-batch.md.

constexpr u32 WARPS = PQ_WARPS;
constexpr u32 BATCH = PQ_BATCH;             // row tiles between two barriers of a block's warps, even
// An iteration of a warp: two row tiles and, where registers suffice, two passes over the columns.
constexpr u32 AT_ONCE = 2, PASSES = NT * PAIRS <= 16 ? 2 : 1, UNITS = AT_ONCE * PASSES;
constexpr u32 BATCH_ROWS = BATCH * TILE_ROWS;
// Padded: a warp's sums of 8 rows by 4 rows of x, and 4 warps' sums of 8 rows, are 32 banks.
constexpr u32 SUMS = BATCH_ROWS + (SPLIT ? 8 : 4), WARP_SUMS = TOKENS * SUMS + 8;
constexpr u32 PIECES = PAIRS / 4;           // pieces of 16 bytes a lane of a code tile's x
// Batches whose sums have space: the one being multiplied, the one being added up, and one between.
constexpr u32 SLOTS = 3, SLOT = WARPS * WARP_SUMS;
static_assert(SLOTS * SLOT * 4 <= PQ_SUMS_SHARED, "what the host gives a block");

// A barrier in shared memory at which one lane arrives for each warp: 32 lanes would take 32 operations.
__device__ __forceinline__ void init_barrier(u32 barrier) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "n"(WARPS) : "memory");
}
__device__ __forceinline__ void arrive(u32 barrier, u32 lane) {
    __syncwarp();
    if (lane == 0) asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(barrier) : "memory");
}
// Waits until all warps have arrived in the round of this parity.
__device__ __forceinline__ void wait_for_all(u32 barrier, u32 parity) {
    for (u32 there = 0; !there;) {
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(there) : "r"(barrier), "r"(parity) : "memory");
    }
}

KERNEL BOUNDS_ALONE(WARPS * 32, ROOM)
pq_rows(const u32* codes, const u32* codebook, const u16* scales, const f32* bias, const uint4* x, f32* y, u32 out,
        u32 code_tiles, LinearParams params) {
    char* table = table_start();
    f32* partials = reinterpret_cast<f32*>(table + TABLE_BYTES); // [SLOTS, WARPS, TOKENS, SUMS], padded
    __shared__ u64 barriers[SLOTS];
    const u32 barrier = (u32)__cvta_generic_to_shared(barriers);
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 row_tiles = (out + TILE_ROWS - 1) / TILE_ROWS;
    const u32 first = row_tiles * blockIdx.x / gridDim.x, count = row_tiles * (blockIdx.x + 1) / gridDim.x - first;
    release_next();

    // A warp iterates over PASSES passes over the columns, AT_ONCE row tiles. A unit's codes for the next iteration are
    // loaded as soon as the current ones are used up.
    struct { u32 begin, tile; } ahead = {0, 0};
    u32 units[UNITS][BITS] = {};
    auto fetch = [&](u32 unit) {
        const u32 kt = ahead.begin + unit / AT_ONCE * WARPS + warp, tile = ahead.tile + unit % AT_ONCE;
        if (tile < count && kt < code_tiles) load_tile(units[unit], codes + ((u64)(first + tile) * code_tiles + kt) * TILE_WORDS, lane);
        if (unit < UNITS - 1) return;
        ahead.tile += AT_ONCE;
        if (ahead.tile >= count) ahead.tile = 0, ahead.begin += PASSES * WARPS;
    };
#pragma unroll
    for (u32 unit = 0; unit < UNITS; unit++) fetch(unit);
    if (scales && threadIdx.x < count) prefetch_l2(scales + (first + threadIdx.x) * TILE_ROWS);
    fill_table(table, codebook);
    if (threadIdx.x < SLOTS) init_barrier(barrier + threadIdx.x * 8);
    wait_inputs();

    // The number of batches so far, and the last of them, whose sums are not added up yet.
    struct { u32 turn, begin, batch; } last = {0, 0, 0};
    // Sums the last batch over the warps, 4 threads a row. Scale, bias and residual are loaded one row ahead.
    auto add_up = [&]() {
        struct Target { f32* y; f32 before, scale; };
        auto target = [&](u32 i) {
            const u32 r = i % BATCH_ROWS, token = i / BATCH_ROWS, n = (first + last.batch) * TILE_ROWS + r;
            Target to = {nullptr, 0.f, 1.f};
            const bool there = r < (count - last.batch) * TILE_ROWS && n < out && token < params.rows;
            if (lane % 4 || !there) return to;
            to.y = y + (u64)token * params.y_stride + params.y_offset + n;
            if (scales) to.scale = from_f16(scales[n]);
            if (params.accumulate || last.begin) to.before = *to.y;
            if (bias && last.begin == 0) to.before += bias[n];
            return to;
        };
        Target ahead_row = target(threadIdx.x / 4);
        const u32 turn = last.turn - 1, slot = turn % SLOTS;
        wait_for_all(barrier + slot * 8, turn / SLOTS & 1);
#pragma unroll 1
        for (u32 i = threadIdx.x / 4; i < BATCH_ROWS * TOKENS; i += blockDim.x / 4) {
            const Target to = ahead_row;
            ahead_row = target(i + blockDim.x / 4);
            const f32* at = partials + slot * SLOT + i / BATCH_ROWS * SUMS + i % BATCH_ROWS;
            f32 sum = 0.f;
#pragma unroll
            for (u32 k = 0; k < WARPS; k += 4) sum += at[(k + lane % 4) * WARP_SUMS];
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (to.y) *to.y = to.before + sum * to.scale;
        }
    };

    const u32 low = lane_offset(lane);
#pragma unroll 1
    for (u32 begin = 0; begin < code_tiles; begin += PASSES * WARPS) {
        // Touch x before the loop (XOR with `none`, which is 0 at run time): its loads share a scoreboard with the codes',
        // so the loop would stall on the codes just requested wherever it reads x.
        const u32 none = gridDim.y - 1;
        u32 b[PASSES][NT][STEPS][2] = {};
#pragma unroll
        for (u32 p = 0; p < PASSES; p++) {
            const u32 kt = begin + p * WARPS + warp;
            if (kt >= code_tiles) continue;
#pragma unroll
            for (int i = 0; i < NT * PIECES; i++) {
                const uint4 v = x[(kt * NT * PIECES + i) * 32 + lane];
                const int nt = i / PIECES, s = i % PIECES * 2;
                b[p][nt][s][0] = v.x ^ none, b[p][nt][s][1] = v.y ^ none;
                b[p][nt][s + 1][0] = v.z ^ none, b[p][nt][s + 1][1] = v.w ^ none;
            }
        }
        if (begin == 0) __syncthreads(); // the table is filled
#pragma unroll 1
        for (u32 batch = 0; batch < count; batch += BATCH) {
            const u32 tiles = min(BATCH, count - batch);
            const u32 slot = last.turn % SLOTS;
            f32* partial = partials + slot * SLOT + warp * WARP_SUMS;
#pragma unroll 1
            for (u32 tile = 0; tile < tiles; tile += AT_ONCE) {
                f32 acc[AT_ONCE][NT][4] = {};
#pragma unroll
                for (u32 p = 0; p < PASSES; p++) {
#pragma unroll
                    for (u32 k = 0; k < AT_ONCE; k++) {
                        const u32 unit = p * AT_ONCE + k;
                        if (begin + p * WARPS + warp < code_tiles && tile + k < tiles) {
                            multiply_tile<TABLE_LOG>(acc[k], units[unit], b[p], low, [&](int) { return TABLE_AT; });
                        }
                        fetch(unit);
                        __syncwarp(); // keeps the compiler from postponing the fetch
                    }
                }
#pragma unroll
                for (u32 k = 0; k < AT_ONCE; k++) {
                    store_sums(acc[k], lane, [&](u32 token, u32 row, f32 v) {
                        partial[token * SUMS + (tile + k) * TILE_ROWS + row] = v;
                    });
                }
            }
            if (last.turn) add_up();
            arrive(barrier + slot * 8, lane);
            last = {last.turn + 1, begin, batch};
        }
    }
    add_up();
}
