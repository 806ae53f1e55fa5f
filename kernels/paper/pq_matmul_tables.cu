// y = W x for product-quantized W and some rows of x, by tables of products: the method of the paper (arXiv 2605.04084).
// Grid: (row groups, token groups, splits).
//
// For each sub-vector of x a table in shared memory holds its products with all centroids, for TOKENS rows of x side by
// side; an output is the sum of the table entries that its row's codes select. Sums stay in registers until the columns are
// done (output-stationary), columns are split over the grid (split-K, pq_reduce adds up), and one of two buffers is filled
// while the other is read. A lane's codes i of a tile belong to four sub-vectors, one for each lane % 4, so an iteration
// needs four tables. f32 throughout. No specialisation for K above 2048: four tables of one row would not fit.
//
// Bound: reads of 32 bytes from random banks. A table costs 2 D K operations a row of x, as much as K / 2 rows of W save, so
// it pays from some thousand rows of W on. H200, a llama3-8b layer's matrices at 2-256 by 4 rows: 1,831 us, pq_rows.cu 46.9.
// Kept for comparison only.

constexpr int TOKENS = TABLES_TOKENS, WARPS = 8, MT = BITS <= 8 ? 4 : 2;
constexpr u32 K = 1u << BITS, ENTRY_LOG_OF_TOKENS = TOKENS == 8 ? 5 : TOKENS == 4 ? 4 : TOKENS == 2 ? 3 : 2;
constexpr u32 STEP_TABLES = 4, TILE_INPUTS = TILE_CODES * D;

KERNEL BOUNDS(WARPS * 32)
pq_matmul_tables(const u32* codes, const u32* codebooks, const f32* x, f32* partial, u32 out, u32 in, u32 subspaces,
                 u32 code_tiles, u32 group, LinearParams params) {
    f32* tables = reinterpret_cast<f32*>(dynamic_shared);  // [2][STEP_TABLES][K][TOKENS]
    f32* inputs = tables + 2 * STEP_TABLES * K * TOKENS;   // [2][TILE_INPUTS][TOKENS]
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, t = lane % 4;
    const u32 row_tiles = (out + TILE_ROWS - 1) / TILE_ROWS, first_tile = (blockIdx.x * WARPS + warp) * MT;
    const u32 first_token = blockIdx.y * TOKENS, last_book = (subspaces - 1) / group;
    const u32 begin = code_tiles * blockIdx.z / gridDim.z, end = code_tiles * (blockIdx.z + 1) / gridDim.z;
    release_next();
    wait_inputs();

    auto load_inputs = [&](u32 kt) {
        f32* to = inputs + kt % 2 * (TILE_INPUTS * TOKENS);
        for (u32 i = threadIdx.x; i < TILE_INPUTS * TOKENS; i += blockDim.x) {
            const u32 token = first_token + i / TILE_INPUTS, column = kt * TILE_INPUTS + i % TILE_INPUTS;
            to[i % TILE_INPUTS * TOKENS + i / TILE_INPUTS] =
                token < params.rows && column < in ? x[(u64)token * in + column] : 0.f;
        }
    };
    // Builds the four tables of codes `i` of tile kt.
    auto build = [&](u32 kt, u32 i) {
        f32* to = tables + i % 2 * (STEP_TABLES * K * TOKENS);
        for (u32 at = threadIdx.x; at < STEP_TABLES * K; at += blockDim.x) {
            const u32 j = at / K * LANE_CODES + i, book = min((kt * TILE_CODES + j) / group, last_book);
            const u32* entry = codebooks + (((u64)book << BITS) + at % K) * ENTRY_WORDS;
            const f32* v = inputs + kt % 2 * (TILE_INPUTS * TOKENS) + j * D * TOKENS;
            f32 sums[TOKENS] = {};
#pragma unroll
            for (int e = 0; e < D; e++) {
                const f32 c = e % 2 ? high_f16(entry[e / 2]) : low_f16(entry[e / 2]);
#pragma unroll
                for (int n = 0; n < TOKENS; n++) sums[n] += c * v[e * TOKENS + n];
            }
#pragma unroll
            for (int n = 0; n < TOKENS; n++) to[at * TOKENS + n] = sums[n];
        }
    };

    f32 sums[MT][2][TOKENS] = {};
    if (begin < end) {
        load_inputs(begin);
        __syncthreads();
        build(begin, 0);
    }
    for (u32 kt = begin; kt < end; kt++) {
        u32 w[MT][BITS];
#pragma unroll
        for (int m = 0; m < MT; m++) {
            load_tile(w[m], codes + ((u64)min(first_tile + m, row_tiles - 1) * code_tiles + kt) * TILE_WORDS, lane);
        }
        if (kt + 1 < end) load_inputs(kt + 1);
#pragma unroll
        for (int i = 0; i < LANE_CODES; i++) {
            __syncthreads();
            if (i + 1 < LANE_CODES) build(kt, i + 1);
            else if (kt + 1 < end) build(kt + 1, 0);
            const char* table = reinterpret_cast<const char*>(tables + (i % 2 * STEP_TABLES + t) * (K * TOKENS));
#pragma unroll
            for (int m = 0; m < MT; m++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const u32 at = code_at<ENTRY_LOG_OF_TOKENS>(w[m], half * LANE_CODES + i, 0);
                    const f32* products = reinterpret_cast<const f32*>(table + at);
#pragma unroll
                    for (int n = 0; n < TOKENS; n++) sums[m][half][n] += products[n];
                }
            }
        }
    }
#pragma unroll
    for (int m = 0; m < MT; m++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 row = (first_tile + m) * TILE_ROWS + half * 8 + lane / 4;
#pragma unroll
            for (int n = 0; n < TOKENS; n++) {
                f32 sum = sums[m][half][n];
                sum += __shfl_xor_sync(~0u, sum, 1);
                sum += __shfl_xor_sync(~0u, sum, 2);
                const u32 token = first_token + n;
                if (t == n % 4 && token < params.rows && row < out) {
                    partial[((u64)blockIdx.z * params.rows + token) * out + row] = sum;
                }
            }
        }
    }
}
