// y = W x for product-quantized W and one row of x, as a launch of its own. In the persistent decode kernel pq_row.cu does
// this; a few rows of x go to pq_rows.cu, codebooks per subspace to pq_matvec_subspace.cu.
//
// pq_matvec_shared: W has one codebook, which is replicated in shared memory (fill_table). A lane looks up its 32 codes of a
// tile, which gives the A operand of mma.sync as it is; x is the B operand, as f16 and f16 remainder in neighbouring
// columns, so that no precision is lost. A block owns a contiguous range of row tiles, its warps share the columns. x is
// brought into the operand's order once a block. The warps' sums meet in shared memory: no atomics, no memset,
// deterministic. Each lane has four tiles of codes in flight; the first ones and the table are loaded before wait_inputs().
// At most 112 registers, so that a block of the next kernel fits beside (BOUNDS_ALONE).
// Bound: memory and table lookups, as in pq_row.cu. H200, qwen3.5-9b at 2-256: 430 tok/s. Versions: docs/log/cuda-decode.md.
//
// pq_matvec: any other spec and any number of rows of x, in f32, codebooks through L1. Not tuned.

#ifdef PQ_REPLICAS
constexpr u32 PITCH = 32, TILE_STAGE = PAIRS / 4 * PITCH;
static_assert(WARPS * TILE_STAGE * 4 == PQ_STAGE_SHARED, "what the host gives a block");
constexpr u32 STAGED = PASSES > 1 ? 8 : 4; // pairs a thread stages at a time: limited by registers

// x is staged a chunk of columns at a time (all columns, where they fit).
KERNEL BOUNDS_ALONE(WARPS * 32, ROOM)
pq_matvec_shared(const u32* codes, const u32* codebook, const u16* scales, const f32* bias, const f32* x, f32* y,
                 u32 out, u32 in, u32 code_tiles, u32 chunk_passes, LinearParams params) {
    char* table = table_start();
    f32* partials = reinterpret_cast<f32*>(table + TABLE_BYTES); // two of [WARPS, SUMS]
    u32* stage = reinterpret_cast<u32*>(partials + 2 * WARPS * SUMS);
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 row_tiles = (out + TILE_ROWS - 1) / TILE_ROWS, passes = (code_tiles + WARPS - 1) / WARPS;
    const u32 first = row_tiles * blockIdx.x / gridDim.x, last = row_tiles * (blockIdx.x + 1) / gridDim.x;
    release_next();

    // A warp iterates over chunks of columns, batches of row tiles, PASSES passes over the chunk's columns, AT_ONCE row
    // tiles. A unit's codes for the next iteration are loaded as soon as the current ones are used up.
    struct { u32 chunk, pass, tile; } ahead = {0, 0, first};
    u32 units[UNITS][BITS] = {};
    auto fetch = [&](u32 unit) {
        const u32 kt = (ahead.pass + unit / AT_ONCE) * WARPS + warp, tile = ahead.tile + unit % AT_ONCE;
        if (tile < last && kt < code_tiles) load_tile(units[unit], codes + ((u64)tile * code_tiles + kt) * TILE_WORDS, lane);
        if (unit < UNITS - 1) return;
        ahead.tile += AT_ONCE;
        if (ahead.tile < last && (ahead.tile - first) % BATCH) return;
        ahead.pass += PASSES;
        if (ahead.pass < min(ahead.chunk + chunk_passes, passes)) {
            ahead.tile = first + (ahead.tile - 1 - first) / BATCH * BATCH;
            return;
        }
        if (ahead.tile >= last) ahead.tile = first, ahead.chunk += chunk_passes;
        ahead.pass = ahead.chunk;
    };
#pragma unroll
    for (u32 unit = 0; unit < UNITS; unit++) fetch(unit);
    use_table(table, codebook);
    wait_inputs();

    const u32 low = lane_offset(lane);
    for (u32 chunk = 0; chunk < passes; chunk += chunk_passes) {
        const u32 chunk_end = min(chunk + chunk_passes, passes);
        if (chunk) __syncthreads(); // all warps have read the stage
        const u32 tiles_in_chunk = min(chunk_end * WARPS, code_tiles) - chunk * WARPS;
        stage_row<PITCH, STAGED>(stage, x, in, chunk * WARPS, tiles_in_chunk);
        __syncthreads();
        for (u32 batch = first; batch < last; batch += BATCH) {
            const u32 tiles = min(BATCH, last - batch);
            f32* partial = partials + (batch - first) / BATCH % 2 * WARPS * SUMS;
            for (u32 pass = chunk; pass < chunk_end; pass += PASSES) {
                const u32 kt = pass * WARPS + warp;
                const u32* staged = stage + (kt - chunk * WARPS) * TILE_STAGE + (lane / 4 % 2 * 4 + lane % 4) * 4;
                u32 b[PASSES][NT][STEPS][2] = {}; // x for the batch
#pragma unroll
                for (u32 p = 0; p < PASSES; p++) {
                    if (pass + p >= chunk_end || kt + p * WARPS >= code_tiles) continue;
                    load_operand<PITCH>(b[p][0], staged + p * WARPS * TILE_STAGE);
                }
#pragma unroll 1
                for (u32 tile = 0; tile < tiles; tile += AT_ONCE) {
                    f32 acc[AT_ONCE][NT][4] = {};
#pragma unroll
                    for (u32 p = 0; p < PASSES; p++) {
#pragma unroll
                        for (u32 k = 0; k < AT_ONCE; k++) {
                            const u32 unit = p * AT_ONCE + k;
                            multiply_tile<TABLE_LOG>(acc[k], units[unit], b[p], low, [&](int) { return TABLE_AT; });
                            fetch(unit);
                            __syncwarp(); // keeps the compiler from postponing the fetch
                        }
                    }
#pragma unroll
                    for (u32 k = 0; k < AT_ONCE; k++) {
                        store_sums(acc[k], lane, [&](u32, u32 row, f32 v) {
                            f32* at = partial + warp * SUMS + (tile + k) * TILE_ROWS + row;
                            *at = pass > chunk ? *at + v : v;
                        });
                    }
                }
            }
            // Sums the batch over the warps, 4 threads a row. Scale, bias and residual are loaded one row ahead.
            struct Target { f32* y; f32 before, scale; };
            auto target = [&](u32 i) {
                const u32 n = batch * TILE_ROWS + i;
                Target to = {nullptr, 0.f, 1.f};
                if (lane % 4 || i >= tiles * TILE_ROWS || n >= out) return to;
                to.y = y + params.y_offset + n;
                if (scales) to.scale = from_f16(scales[n]);
                if (params.accumulate || chunk) to.before = *to.y;
                if (bias && chunk == 0) to.before += bias[n];
                return to;
            };
            Target ahead_row = target(threadIdx.x / 4);
            __syncthreads();
#pragma unroll 1
            for (u32 i = threadIdx.x / 4; i < BATCH_ROWS; i += blockDim.x / 4) {
                const Target to = ahead_row;
                ahead_row = target(i + blockDim.x / 4);
                const f32 sum = sum_of_warps(partial + i);
                if (to.y) *to.y = to.before + sum * to.scale;
            }
        }
    }
}

#else

// Grid: (row tiles / 4, rows of x); one warp a row tile.
KERNEL pq_matvec(const u32* codes, const u16* codebooks, const u16* scales, const f32* bias, const f32* x, f32* y,
                 u32 out, u32 in, u32 code_tiles, u32 group, LinearParams params) {
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, tile = blockIdx.x * (blockDim.x >> 5) + (threadIdx.x >> 5);
    const u32 subspaces = (in + D - 1) / D, token = blockIdx.y;
    if (tile * TILE_ROWS >= out) return;
    const f32* row = x + (u64)token * in;
    f32 sums[2] = {0.f, 0.f};
    for (u32 kt = 0; kt < code_tiles; kt++) {
        u32 w[BITS];
        load_tile(w, codes + ((u64)tile * code_tiles + kt) * TILE_WORDS, lane);
#pragma unroll
        for (int i = 0; i < LANE_CODES; i++) {
            const u32 j = kt * TILE_CODES + lane % 4 * LANE_CODES + i;
            if (j >= subspaces) break;
            const u16* book = codebooks + ((u64)(group == 1 ? j : j / group) << BITS) * (ENTRY_WORDS * 2);
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const Entry e = load_entry(reinterpret_cast<const char*>(book) + code_at<ENTRY_LOG>(w, half * LANE_CODES + i, 0));
#pragma unroll
                for (int k = 0; k < D; k++) {
                    const f32 c = k % 2 ? high_f16(e.word[k / 2]) : low_f16(e.word[k / 2]);
                    if (j * D + k < in) sums[half] += c * row[j * D + k];
                }
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        f32 sum = sums[half];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const u32 n = tile * TILE_ROWS + half * 8 + lane / 4;
        if (lane % 4 == 0 && n < out) {
            store_linear(y, bias, token, n, scales ? sum * from_f16(scales[n]) : sum, params);
        }
    }
}
#endif
