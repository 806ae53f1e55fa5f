// y = W x for product-quantized W and some rows of x, on tensor cores: a lane looks up its codes straight into the A operand
// of mma.sync, so decoded weights exist in registers only.
//
// x comes packed (pack_rows.cu), a column a row of x, or two where TILES_SPLIT. A block multiplies ROW_TILES tiles of W's
// rows by NT x 8 columns of x: its warps divide the rows (WARP_ROWS), then the codes of a row (WARP_CODES). Work is cut into
// units, a block's rows by WARP_CODES code tiles, and every block gets the same number of consecutive units, whole outputs
// or parts of them (stream-K), so that no wave of blocks is half empty. Codes and x of the next units are copied to shared
// memory meanwhile (cp.async, STAGES deep). The last block to finish an output adds up its parts in the order of the blocks:
// deterministic.
//
// Bound: up to 16 columns by what a multiprocessor gets from L2, codes and x together, some 25 bytes a clock; so a block
// takes 128 rows of W, enough that x is read seldom and few enough that parts stay small. With more columns by shared
// memory: a tile of 1 KB of codes costs a warp 32 lookups, 16 accesses for the codes' way in and out, and 32 NT / MT for x.
// H200, a llama3-8b layer's matrices at 2-256: 61.5 us by 4 rows, 103 by 16, 786 by 512. Versions: docs/log/cuda-batch.md.

constexpr int MT = TILES_MT, NT = TILES_NT, STAGES = TILES_STAGES; // row tiles and 8-column groups of a warp
constexpr int WARP_ROWS = TILES_WARP_ROWS, WARP_CODES = TILES_WARP_CODES;
constexpr int WARPS = WARP_ROWS * WARP_CODES, ROW_TILES = WARP_ROWS * MT;
constexpr u32 TILE_BYTES = TILE_WORDS * 4, PIECES = PAIRS / 4, GROUP_BYTES = PIECES * 512;
constexpr u32 STAGE_CODES = WARP_CODES * ROW_TILES * TILE_BYTES, STAGE_X = WARP_CODES * NT * GROUP_BYTES;
constexpr u32 STAGE_BYTES = STAGE_CODES + STAGE_X;
constexpr u32 SUMS = MT * NT, LANES = WARP_ROWS * 32; // float4s of sums a lane; lanes that have an output
static_assert(STAGES * STAGE_BYTES + (WARP_CODES - 1) * LANES * SUMS * 16 == TILES_SHARED, "what the host gives a block");

__device__ __forceinline__ void copy_async(u32 to, const void* from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ __forceinline__ void commit_async() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LATER> __device__ __forceinline__ void wait_async() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

__device__ __forceinline__ uint4 load_shared(u32 at) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(at));
    return v;
}

// Loads a lane's words of a tile from shared memory; see load_tile.
__device__ __forceinline__ void staged_tile(u32 (&w)[BITS], u32 tile, u32 lane) {
#pragma unroll
    for (int q = 0; q < BITS / 4 * 4; q += 4) {
        const uint4 v = load_shared(tile + q * 128 + lane * 16);
        w[q] = v.x, w[q + 1] = v.y, w[q + 2] = v.z, w[q + 3] = v.w;
    }
    if constexpr (BITS & 2) {
        constexpr int AT = BITS / 4 * 4;
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(w[AT]), "=r"(w[AT + 1]) : "r"(tile + AT * 128 + lane * 8));
    }
    if constexpr (BITS & 1) {
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(w[BITS - 1]) : "r"(tile + (BITS - 1) * 128 + lane * 4));
    }
}

// Loads past L1 what other blocks wrote.
__device__ __forceinline__ float4 load_other(const float4* at) {
    float4 v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(at));
    return v;
}

__device__ __forceinline__ void add(float4& sum, const float4& v) { sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w; }

// A unit's position in the work.
struct Place {
    u32 row_group, column_group, round;
    __device__ __forceinline__ void set(u32 unit, u32 rounds, u32 column_groups) {
        const u32 output = unit / rounds;
        round = unit - output * rounds, row_group = output / column_groups, column_group = output - row_group * column_groups;
    }
    __device__ __forceinline__ void next(u32 rounds, u32 column_groups) {
        if (++round < rounds) return;
        round = 0;
        if (++column_group < column_groups) return;
        column_group = 0, row_group++;
    }
};

// Grid: (blocks). `groups`: 8-column groups of packed x, a multiple of NT. `partial`: [blocks, 2, rows, columns of a block],
// a block's first and its last unfinished output. `arrivals`: one counter an output, zero before and after.
KERNEL BOUNDS(WARPS * 32, TILES_BLOCKS)
pq_matmul_tiles(const u32* codes, const u32* codebooks, const u16* scales, const f32* bias, const uint4* x, f32* y,
                float4* partial, u32* arrivals, u32 out, u32 subspaces, u32 code_tiles, u32 group, u32 groups,
                LinearParams params) {
    __shared__ u32 last_to_come;
    release_next();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 warp_row = warp % WARP_ROWS, warp_code = warp / WARP_ROWS;
    const u32 row_tiles = (out + TILE_ROWS - 1) / TILE_ROWS, rounds = (code_tiles + WARP_CODES - 1) / WARP_CODES;
    const u32 column_groups = groups / NT, units = (row_tiles + ROW_TILES - 1) / ROW_TILES * column_groups * rounds;
    auto first_unit = [&](u32 block) { return (u32)((u64)units * block / gridDim.x); };
    auto block_of = [&](u32 unit) { return (u32)((((u64)unit + 1) * gridDim.x - 1) / units); };
    const u32 begin = first_unit(blockIdx.x), end = first_unit(blockIdx.x + 1);
    if (begin == end) return;

#ifdef PQ_REPLICAS
    const u32 stages = TABLE_AT + TABLE_BYTES;
#else
    const u32 stages = (u32)__cvta_generic_to_shared(dynamic_shared);
#endif
    auto fetch_codes = [&](const Place& at, u32 stage) {
        constexpr u32 EACH = TILE_BYTES / 16, COUNT = WARP_CODES * ROW_TILES * EACH;
#pragma unroll
        for (u32 first = 0; first < COUNT; first += WARPS * 32) {
            const u32 i = first + threadIdx.x, tile = i / EACH;
            if (COUNT % (WARPS * 32) && i >= COUNT) break;
            const u32 row = at.row_group * ROW_TILES + tile / WARP_CODES, kt = at.round * WARP_CODES + tile % WARP_CODES;
            const bool there = row < row_tiles && kt < code_tiles;
            const char* from = reinterpret_cast<const char*>(codes) + ((u64)row * code_tiles + kt) * TILE_BYTES + i % EACH * 16;
            copy_async(stages + stage * STAGE_BYTES + i * 16, there ? from : reinterpret_cast<const char*>(codes), there);
        }
    };
    auto fetch_x = [&](const Place& at, u32 stage) {
        constexpr u32 EACH = NT * PIECES * 32, COUNT = WARP_CODES * EACH;
#pragma unroll
        for (u32 first = 0; first < COUNT; first += WARPS * 32) {
            const u32 i = first + threadIdx.x, kt = at.round * WARP_CODES + i / EACH;
            if (COUNT % (WARPS * 32) && i >= COUNT) break;
            const bool there = kt < code_tiles;
            const uint4* from = x + ((u64)kt * groups + at.column_group * NT) * (PIECES * 32) + i % EACH;
            copy_async(stages + stage * STAGE_BYTES + STAGE_CODES + i * 16, there ? from : x, there);
        }
    };

    Place ahead, now;
    ahead.set(begin, rounds, column_groups);
    now = ahead;
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (begin + s < end) fetch_codes(ahead, s);
        ahead.next(rounds, column_groups);
    }
#ifdef PQ_REPLICAS
    fill_table(table_start(), codebooks);
    const u32 low = lane_offset(lane);
#else
    const u32 low = 0;
#endif
    wait_inputs();
    ahead = now;
#pragma unroll
    for (u32 s = 0; s < STAGES - 1; s++) {
        if (begin + s < end) fetch_x(ahead, s);
        commit_async();
        ahead.next(rounds, column_groups);
    }

    f32 acc[MT][NT][4] = {};
    auto each_sum = [&](auto use) {
#pragma unroll
        for (int m = 0; m < MT; m++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
                float4 v = make_float4(acc[m][n][0], acc[m][n][1], acc[m][n][2], acc[m][n][3]);
                use(m, n, v);
                asm volatile("" ::: "memory"); // keeps the compiler from doing several at once, which would spill
                acc[m][n][0] = v.x, acc[m][n][1] = v.y, acc[m][n][2] = v.z, acc[m][n][3] = v.w;
            }
        }
    };
    // Stores a row's sums of two columns.
    auto store_pair = [&](f32 a, f32 b, u32 row, u32 column) {
        if (row >= out) return;
        const f32 scale = scales ? from_f16(scales[row]) : 1.f;
        if constexpr (TILES_SPLIT) {
            if (column / 2 < params.rows) store_linear(y, bias, column / 2, row, (a + b) * scale, params);
        } else {
            if (column < params.rows) store_linear(y, bias, column, row, a * scale, params);
            if (column + 1 < params.rows) store_linear(y, bias, column + 1, row, b * scale, params);
        }
    };
    for (u32 unit = begin, stage = 0; unit < end; unit++) {
        wait_async<STAGES - 2>();
        __syncthreads();
        if (unit + STAGES - 1 < end) {
            const u32 free = stage ? stage - 1 : STAGES - 1;
            fetch_codes(ahead, free);
            fetch_x(ahead, free);
            ahead.next(rounds, column_groups);
        }
        commit_async();

        const u32 staged = stages + stage * STAGE_BYTES;
        const u32 xs = staged + STAGE_CODES + warp_code * NT * GROUP_BYTES + lane * 16;
        u32 w[MT][BITS];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            staged_tile(w[m], staged + ((warp_row * MT + m) * WARP_CODES + warp_code) * TILE_BYTES, lane);
        }
#ifndef PQ_REPLICAS
        const u32 first_code = (now.round * WARP_CODES + warp_code) * TILE_CODES + lane % 4 * LANE_CODES;
        const u32 last_book = (subspaces - 1) / group;
        auto book = [&](int i) {
            return reinterpret_cast<const char*>(codebooks) + ((u64)min((first_code + i) / group, last_book) << (BITS + ENTRY_LOG));
        };
#endif
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++) {
            constexpr int CODES = 8 / ENTRY;
            u32 upper[MT][4], lower[MT][4];
#pragma unroll
            for (int m = 0; m < MT; m++) {
#ifdef PQ_REPLICAS
                auto table = [&](int) { return TABLE_AT; };
                pairs_of<TABLE_LOG>(upper[m], w[m], piece * CODES, low, table);
                pairs_of<TABLE_LOG>(lower[m], w[m], LANE_CODES + piece * CODES, low, table);
#else
                pairs_of<ENTRY_LOG>(upper[m], w[m], piece * CODES, low, book);
                pairs_of<ENTRY_LOG>(lower[m], w[m], LANE_CODES + piece * CODES, low, book);
#endif
            }
#pragma unroll
            for (int n = 0; n < NT; n++) {
                const uint4 b = load_shared(xs + n * GROUP_BYTES + piece * 512);
#pragma unroll
                for (int m = 0; m < MT; m++) {
                    mma(acc[m][n], upper[m][0], lower[m][0], upper[m][1], lower[m][1], b.x, b.y);
                    mma(acc[m][n], upper[m][2], lower[m][2], upper[m][3], lower[m][3], b.z, b.w);
                }
            }
        }
        stage = stage + 1 == STAGES ? 0 : stage + 1;
        const Place place = now;
        now.next(rounds, column_groups);
        if (now.round && unit + 1 < end) continue;

        // Here an output, or the block's part of one, is complete.
        const u32 mine = threadIdx.x % LANES;
        if constexpr (WARP_CODES > 1) {
            float4* sums = reinterpret_cast<float4*>(dynamic_shared + (stages + STAGES * STAGE_BYTES - (u32)__cvta_generic_to_shared(dynamic_shared)));
            if (warp_code) each_sum([&](int m, int n, float4& v) { sums[((warp_code - 1) * SUMS + m * NT + n) * LANES + mine] = v; });
            __syncthreads();
            if (warp_code == 0) {
#pragma unroll
                for (u32 k = 0; k < WARP_CODES - 1; k++) {
                    each_sum([&](int m, int n, float4& v) { add(v, sums[(k * SUMS + m * NT + n) * LANES + mine]); });
                }
            }
        }
        auto store = [&](int m, int n, float4 v) {
            const u32 row = (place.row_group * ROW_TILES + warp_row * MT + m) * TILE_ROWS + lane / 4;
            const u32 column = (place.column_group * NT + n) * 8 + lane % 4 * 2;
            store_pair(v.x, v.y, row, column);
            store_pair(v.z, v.w, row + 8, column);
        };
        const u32 output = place.row_group * column_groups + place.column_group;
        const u32 first_block = block_of(output * rounds), last_block = block_of((output + 1) * rounds - 1);
        if (first_block == last_block) {
            if (warp_code == 0) each_sum(store);
        } else {
            auto part_of = [&](u32 block) {
                const u32 which = first_unit(block) / rounds == output ? 0 : 1;
                return partial + (u64)(block * 2 + which) * (SUMS * LANES) + mine;
            };
            if (warp_code == 0) {
                float4* to = part_of(blockIdx.x);
                each_sum([&](int m, int n, float4& v) { to[(m * NT + n) * LANES] = v; });
            }
            __threadfence();
            __syncthreads();
            if (threadIdx.x == 0) {
                last_to_come = atomicAdd(arrivals + output, 1) == last_block - first_block;
                if (last_to_come) arrivals[output] = 0;
            }
            __syncthreads();
            if (last_to_come) {
                __threadfence();
#pragma unroll 1
                for (u32 i = warp_code; i < SUMS; i += WARP_CODES) {
                    float4 v = load_other(part_of(first_block) + i * LANES);
#pragma unroll 4
                    for (u32 block = first_block + 1; block <= last_block; block++) add(v, load_other(part_of(block) + i * LANES));
                    store(i / NT, i % NT, v);
                }
            }
        }
        each_sum([](int, int, float4& v) { v = make_float4(0.f, 0.f, 0.f, 0.f); });
    }
}
