// y = W x for W with a codebook per subspace (the paper's layout) and few rows of x.
//
// A block owns the 64 subspaces of a code tile and a range of row tiles. Its table in shared memory holds, for every code,
// 64 neighbouring entries, one a subspace. With one row of x an entry is the product of the centroid and its part of x, in
// f32, so that a code costs one lookup and one addition. With more rows an entry is the centroid, and lookups give the A
// operand of mma.sync as in pq_matvec.cu. The 8 lanes with the same lane % 4 look up different codes of the same subspaces,
// which would conflict in a bank. So lane (g, t) takes the codes of a group in the order i ^ g: at any time the 32 lanes
// look up 32 subspaces, whose entries lie in 32 banks (slot_of). Several matrices that share x are one launch. Each block
// writes the sums over its columns to `partial`, and pq_sum_parts adds them up: no atomics, no memset, deterministic. Each
// lane loads DEPTH tiles of codes and a part of the table before wait_inputs().
// Bound: memory latency. H200, the four matrices of a llama3-8b layer at 2-256: 58.3 us with norms and GLU, of which 40.4
// are not adding up. Versions: docs/log/cuda-decode.md.

constexpr u32 MATRICES = SUBSPACE_MATRICES;

// Up to four matrices of `in` columns that multiply the same x; unused slots repeat the last one.

#ifdef PQ_D
// Slot of lane t's subspace j among a code's 64 entries: 8, 4 or 2 neighbouring j of the four t cover all 32 banks, for
// entries of 1, 2 and 4 words.
__device__ __forceinline__ u32 slot_of(u32 t, u32 j) { return j / 2 * 8 + t * 2 + j % 2; }
#endif

#ifdef PQ_TOKENS
constexpr u32 THREADS = PQ_WARPS * 32, WARPS = PQ_WARPS;
constexpr int DEPTH = PQ_DEPTH;                          // tiles of codes in flight a warp
constexpr bool PRODUCTS = TOKENS == 1;
constexpr int WORDS = PRODUCTS ? 1 : ENTRY_WORDS;        // words of a table entry
constexpr int GROUP = 8 / WORDS;                         // codes that a lane permutes: 8 words of entries
constexpr u32 STRIDE = TILE_CODES * WORDS * 4;           // bytes from a code's entries to the next code's
constexpr u32 K = 1u << BITS;

// Permutes v: v[p] becomes v[p ^ g].
template <int N, class T> __device__ __forceinline__ void skew(T (&v)[N], u32 g) {
#pragma unroll
    for (int apart = 1; apart < N; apart *= 2) {
        const bool other = g & apart;
#pragma unroll
        for (int p = 0; p < N; p++) {
            if (p & apart) continue;
            const T a = v[p], b = v[p + apart];
            v[p] = other ? b : a, v[p + apart] = other ? a : b;
        }
    }
}

// A lane's lookups: the offset of its entry for each code of a group, and the order in which it takes a word's bytes.
struct Lane {
    u32 g, t, low[GROUP], byte[4];

    __device__ __forceinline__ explicit Lane(u32 lane) : g(lane / 4), t(lane % 4) {
#pragma unroll
        for (u32 p = 0; p < GROUP; p++) low[p] = slot_of(t, p ^ (g % GROUP)) * (WORDS * 4);
#pragma unroll
        for (u32 b = 0; b < 4; b++) byte[b] = PRODUCTS ? 0x5504 | (b ^ g % 4) << 4 : 0x4440 | (b ^ g % GROUP % 4);
    }

    // Addresses of the entries of the group of codes that begins at `first`, in this lane's order.
    __device__ __forceinline__ void addresses(u32 (&at)[GROUP], const u32 (&w)[BITS], int first) const {
        if constexpr (BITS == 8) {
            u32 words[2] = {w[first / 4], w[first / 4 + (GROUP == 8)]};
            if (GROUP == 8) skew(words, g / 4);
#pragma unroll
            for (int p = 0; p < GROUP; p++) {
                const int b = (first + p) % 4;
                if constexpr (PRODUCTS) at[p] = __byte_perm(words[p / 4], low[p], byte[b]);
                else at[p] = __byte_perm(words[p / 4], 0, byte[b]) * STRIDE + low[p];
            }
        } else {
#pragma unroll
            for (int p = 0; p < GROUP; p++) at[p] = code_at<0>(w, first + p, 0);
            skew(at, g);
#pragma unroll
            for (int p = 0; p < GROUP; p++) at[p] = at[p] * STRIDE + low[p];
        }
#pragma unroll
        for (int p = 0; p < GROUP; p++) at[p] += TABLE_AT + first % LANE_CODES * (4 * WORDS * 4);
    }
};

__device__ __forceinline__ f32 load_product(u32 at) {
    f32 v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(at));
    return v;
}

// The sum of a lane's 16 products of row g or, from code 16 on, of row g + 8.
__device__ __forceinline__ f32 sum_row(const u32 (&w)[BITS], int first, const Lane& lane) {
    f32 sums[2] = {};
#pragma unroll
    for (int i = 0; i < LANE_CODES; i += GROUP) {
        u32 at[GROUP];
        lane.addresses(at, w, first + i);
#pragma unroll
        for (int p = 0; p < GROUP; p++) sums[p % 2] += load_product(at[p]);
    }
    return sums[0] + sums[1];
}

// A lane's weights of a group of codes, as f16 pairs in the order of the codes.
constexpr int GROUP_PAIRS = GROUP * ENTRY / 2;
__device__ __forceinline__ void group_pairs(u32 (&pairs)[GROUP_PAIRS], const u32 (&w)[BITS], int first, const Lane& lane) {
    u32 at[GROUP], v[WORDS][GROUP];
    lane.addresses(at, w, first);
#pragma unroll
    for (int p = 0; p < GROUP; p++) {
        const Entry e = load_entry(at[p]);
#pragma unroll
        for (int k = 0; k < WORDS; k++) v[k][p] = e.word[k];
    }
#pragma unroll
    for (int k = 0; k < WORDS; k++) skew(v[k], lane.g);
#pragma unroll
    for (int p = 0; p < GROUP_PAIRS; p++) {
        if constexpr (ENTRY == 1) pairs[p] = __byte_perm(v[0][2 * p], v[0][2 * p + 1], 0x5410);
        else pairs[p] = v[p % WORDS][p / WORDS];
    }
}

// The B operand of code tile `kt`; rows of x beyond `rows` and columns beyond `in` are zero.
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


// Fills the table of a code tile in parts of FILL quads of slots a thread; the first part is loaded before wait_inputs().
constexpr u32 QUADS = TILE_CODES / 4;                    // quads of slots in a code's 64 entries
constexpr u32 ROWS_AT_ONCE = THREADS / QUADS, FILLS = (K + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
constexpr u32 FILL = FILLS < 8 / ENTRY_WORDS ? FILLS : 8 / ENTRY_WORDS;

constexpr bool EVEN = K % (ROWS_AT_ONCE * FILL) == 0;

struct Fill {
    const uint4* from;
    uint4 raw[FILL][ENTRY_WORDS];

    __device__ __forceinline__ void load(u32 part) {
#pragma unroll
        for (u32 i = 0; i < FILL; i++) {
            const u32 k = (part * FILL + i) * ROWS_AT_ONCE + threadIdx.x / QUADS;
#pragma unroll
            for (u32 e = 0; e < ENTRY_WORDS; e++) {
                if (EVEN || k < K) raw[i][e] = load_stream(from + ((u64)k * QUADS + threadIdx.x % QUADS) * ENTRY_WORDS + e);
            }
        }
    }

    // `x`: the inputs that the quad's four entries are multiplied by (one row of x).
    __device__ __forceinline__ void store(u32 part, const f32 (&x)[4][D]) const {
#pragma unroll
        for (u32 i = 0; i < FILL; i++) {
            const u32 k = (part * FILL + i) * ROWS_AT_ONCE + threadIdx.x / QUADS;
            if (!EVEN && k >= K) break;
            u32 words[4 * ENTRY_WORDS];
#pragma unroll
            for (u32 e = 0; e < ENTRY_WORDS; e++) {
                words[4 * e] = raw[i][e].x, words[4 * e + 1] = raw[i][e].y, words[4 * e + 2] = raw[i][e].z, words[4 * e + 3] = raw[i][e].w;
            }
            uint4* to = reinterpret_cast<uint4*>(table_start() + k * STRIDE) + threadIdx.x % QUADS * WORDS;
            if constexpr (PRODUCTS) {
                f32 products[4] = {};
#pragma unroll
                for (u32 n = 0; n < 4; n++) {
#pragma unroll
                    for (u32 e = 0; e < D; e++) {
                        const u32 pair = words[n * ENTRY_WORDS + e / 2];
                        products[n] += x[n][e] * (e % 2 ? high_f16(pair) : low_f16(pair));
                    }
                }
                *to = make_uint4(__float_as_uint(products[0]), __float_as_uint(products[1]), __float_as_uint(products[2]),
                                 __float_as_uint(products[3]));
            } else {
#pragma unroll
                for (u32 e = 0; e < ENTRY_WORDS; e++) to[e] = raw[i][e];
            }
        }
    }
};

// A fused norm of one row of x: its weights (null: no norm), the buffer that gets the normalised row, and RmsNormParams'
// numbers.

struct Call {
    const SubspaceMatrices& matrices;
    const SubspaceRows& stack;
    const f32* x;
    f32* partial;
    u32 in, code_tiles;
    const LinearParams& params;
    const SubspaceNorm& norm;
};

// Sums over one code tile's columns for a range of rows of one matrix.
__device__ __forceinline__ void multiply(const Call& call, u32 block) {
    const u32 lane_id = threadIdx.x & 31, warp = threadIdx.x >> 5, in = call.in, code_tiles = call.code_tiles;
    const u32 out = call.stack.rows_end[MATRICES - 1];
    const u32* codes = call.matrices.codes[0];
    const u32* table = call.matrices.tables[0];
    u32 row0 = 0, rows = call.stack.rows_end[0], block0 = 0, blocks = call.stack.blocks_end[0];
#pragma unroll
    for (u32 m = 1; m < MATRICES; m++) {
        if (block < call.stack.blocks_end[m - 1]) break;
        codes = call.matrices.codes[m], table = call.matrices.tables[m];
        row0 = call.stack.rows_end[m - 1], rows = call.stack.rows_end[m] - row0;
        block0 = call.stack.blocks_end[m - 1], blocks = call.stack.blocks_end[m] - block0;
    }
    const u32 kt = (block - block0) % code_tiles, split = (block - block0) / code_tiles, splits = blocks / code_tiles;
    const u32 row_tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    const u32 first = row_tiles * split / splits, last = row_tiles * (split + 1) / splits;

    // Past its last tile a warp loads its first one again: a conditional load would cost registers.
    u32 ahead = first + warp;
    const u32* nothing = codes + ((u64)min(first, row_tiles - 1) * code_tiles + kt) * TILE_WORDS;
    u32 units[DEPTH][BITS];
    auto fetch = [&](u32 unit) {
        load_tile(units[unit], ahead < last ? codes + ((u64)ahead * code_tiles + kt) * TILE_WORDS : nothing, lane_id);
        ahead += WARPS;
    };
#pragma unroll
    for (u32 unit = 0; unit < DEPTH; unit++) fetch(unit);
    Fill fill;
    fill.from = reinterpret_cast<const uint4*>(table + (u64)kt * (K * TILE_CODES * ENTRY_WORDS));
    fill.load(0);
    wait_inputs();

    f32 xs[4][D];
    if constexpr (PRODUCTS) {
        const SubspaceNorm& norm = call.norm;
        f32 scale = 1.f;
        if (norm.weight) {
            f32 squares = 0.f;
            for (u32 i = threadIdx.x; i < in; i += THREADS) squares += call.x[i] * call.x[i];
            scale = rsqrtf(block_sum(squares) / in + norm.eps);
        }
#pragma unroll
        for (u32 n = 0; n < 4; n++) {
            const u32 slot = threadIdx.x % QUADS * 4 + n;
            const u32 column = (kt * TILE_CODES + slot / 2 % 4 * LANE_CODES + slot / 8 * 2 + slot % 2) * D;
#pragma unroll
            for (u32 e = 0; e < D; e++) {
                f32 v = column + e < in ? call.x[column + e] : 0.f;
                if (norm.weight && column + e < in) {
                    v *= scale * (norm.weight[column + e] + norm.weight_offset);
                    if (block < code_tiles && threadIdx.x < QUADS) norm.normed[column + e] = v;
                }
                xs[n][e] = v;
            }
        }
    }
#pragma unroll 1
    for (u32 part = 0; part * FILL < FILLS; part++) {
        if (part) fill.load(part);
        fill.store(part, xs);
    }
    __syncthreads();

    const Lane lane(lane_id);
    u32 b[NT][STEPS][2];
    if constexpr (!PRODUCTS) load_x(b, call.x, call.params.rows, in, kt, lane_id);
    auto store = [&](u32 token, u32 tile, u32 row, f32 sum) {
        const u32 n = tile * TILE_ROWS + row;
        if (tile < last && n < rows && token < call.params.rows) {
            call.partial[((u64)kt * call.params.rows + token) * out + row0 + n] = sum;
        }
    };
#pragma unroll 1
    for (u32 tile0 = first + warp; tile0 < last; tile0 += DEPTH * WARPS) {
        if constexpr (PRODUCTS) {
            f32 sums[DEPTH];
#pragma unroll
            for (int unit = 0; unit < DEPTH; unit++) {
                const f32 upper = sum_row(units[unit], 0, lane), lower = sum_row(units[unit], LANE_CODES, lane);
                fetch(unit);
                const bool odd = lane.t & 1;
                sums[unit] = (odd ? lower : upper) + __shfl_xor_sync(~0u, odd ? upper : lower, 1);
            }
            // The four lanes of a row divide the sums: lane t gets row g + 8 (t % 2) of units t / 2, t / 2 + 2 ...
#pragma unroll
            for (int unit = 0; unit < DEPTH; unit += 2) {
                const bool high = lane.t & 2;
                const f32 kept = high ? sums[unit + 1] : sums[unit], given = high ? sums[unit] : sums[unit + 1];
                store(0, tile0 + (unit + lane.t / 2) * WARPS, lane.t % 2 * 8 + lane.g, kept + __shfl_xor_sync(~0u, given, 2));
            }
        } else {
#pragma unroll
            for (int unit = 0; unit < DEPTH; unit++) {
                f32 acc[NT][4] = {};
#pragma unroll
                for (int i = 0; i < LANE_CODES; i += GROUP) {
                    u32 upper[GROUP_PAIRS], lower[GROUP_PAIRS];
                    group_pairs(upper, units[unit], i, lane);
                    group_pairs(lower, units[unit], LANE_CODES + i, lane);
#pragma unroll
                    for (int p = 0; p < GROUP_PAIRS; p += 2) {
                        const int s = (i * ENTRY / 2 + p) / 2;
#pragma unroll
                        for (int nt = 0; nt < NT; nt++) {
                            mma(acc[nt], upper[p], lower[p], upper[p + 1], lower[p + 1], b[nt][s][0], b[nt][s][1]);
                        }
                    }
                }
                fetch(unit);
                store_sums(acc, lane_id, [&](u32 token, u32 row, f32 sum) { store(token, tile0 + unit * WARPS, row, sum); });
            }
        }
    }
}

KERNEL BOUNDS(THREADS, 1)
pq_matvec_subspace(const __grid_constant__ SubspaceMatrices matrices, const __grid_constant__ SubspaceRows stack, const f32* x,
                   f32* partial, u32 in, u32 code_tiles, const __grid_constant__ LinearParams params,
                   const __grid_constant__ SubspaceNorm norm) {
    release_next();
    multiply({matrices, stack, x, partial, in, code_tiles, params, norm}, blockIdx.x);
}

#elif defined(PQ_D)

// Reorders codebooks [subspace][code] to tables [code tile][code][64 slots] in zeroed memory. A thread an entry.
KERNEL pq_tables(const u32* codebooks, u32* tables, u32 subspaces) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u32 s = i >> BITS, code = i & ((1u << BITS) - 1u), j = s % TILE_CODES;
    if (s >= subspaces) return;
    const u64 to = ((u64)(s / TILE_CODES) << BITS | code) * TILE_CODES + slot_of(j / LANE_CODES, j % LANE_CODES);
#pragma unroll
    for (u32 e = 0; e < ENTRY_WORDS; e++) tables[to * ENTRY_WORDS + e] = codebooks[i * ENTRY_WORDS + e];
}
#endif
