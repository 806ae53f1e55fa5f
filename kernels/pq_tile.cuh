// Product-quantized weights in device memory: tiles of 16 rows x 64 codes, [row tile][code tile][BITS planes]. Lane (g, t)
// of a warp owns codes 16t .. 16t+15 of rows g and g+8: 32 codes, BITS words, which are the A operand of mma.sync once they
// are looked up. A tile's words lie in planes of 16 bytes a lane (then 8, then 4), so that every load of a warp is
// contiguous. A row's codes lie back to back in its words. 6-bit codes lie in bytes instead, which one instruction extracts:
// 12 of a row's 16 in one byte each of its 3 words, the last four two bits at a time in what those bytes leave.
// Constants: PQ_D, PQ_BITS.

constexpr int BITS = PQ_BITS;
constexpr int D = PQ_D;
constexpr int LANE_CODES = TILE_CODES / 4;
constexpr int TILE_WORDS = BITS * 32;
#ifdef PQ_SPREAD
constexpr bool SPREAD = true;
#else
constexpr bool SPREAD = false;
#endif
// f16 values of a codebook entry, padded to the size of one load.
constexpr int ENTRY = D <= 2 ? D : D <= 4 ? 4 : 8;

// Index of `lane`'s word `w` in a tile.
__device__ __forceinline__ u32 plane_word(u32 lane, u32 w) { return tile_word(BITS, lane, w); }

// Loads a lane's words of one tile. Not through the read-only path (load_stream): the compiler would postpone these loads to
// the end of an iteration, where nothing hides their latency.
__device__ __forceinline__ void load_tile(u32 (&w)[BITS], const u32* tile, u32 lane) {
#pragma unroll
    for (int q = 0; q < BITS / 4 * 4; q += 4) {
        asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[q]), "=r"(w[q + 1]), "=r"(w[q + 2]), "=r"(w[q + 3]) : "l"(tile + q * 32 + lane * 4));
    }
    if constexpr (BITS & 2) {
        constexpr int AT = BITS / 4 * 4;
        asm volatile("ld.global.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                     : "=r"(w[AT]), "=r"(w[AT + 1]) : "l"(tile + AT * 32 + lane * 2));
    }
    if constexpr (BITS & 1) {
        asm volatile("ld.global.L1::no_allocate.u32 %0, [%1];" : "=r"(w[BITS - 1]) : "l"(tile + (BITS - 1) * 32 + lane));
    }
}

// The last four 6-bit codes of a row, a byte each; the two bits above belong to other codes.
__device__ __forceinline__ u32 last_codes(u32 a, u32 b, u32 c) {
    const u32 low = (a >> 6 & 0x03030303u) | (b >> 4 & ~0x03030303u);
    return (low & 0x0f0f0f0fu) | (c >> 2 & ~0x0f0f0f0fu);
}

// Code `i` (0..31) of a lane's words, shifted left by LOG, with `low`'s bits below: the offset of a table entry. One
// instruction where a code is a byte and goes to byte 1 (6-bit codes bring two foreign bits along), else a shift and a lop3.
template <int LOG>
__device__ __forceinline__ u32 code_at(const u32 (&w)[BITS], int i, u32 low) {
    constexpr bool BYTES = BITS == 8 || BITS == 6;
    constexpr u32 MASK = ((1u << BITS) - 1u) << LOG;
    const int bit = BYTES ? i % 4 * 8 : i * BITS, shift = bit % 32;
    int word = bit / 32;
    if (BITS == 8) word = i / 4;
    if (BITS == 6) word = i / LANE_CODES * 3 + min(i % LANE_CODES / 4, 2);
    u32 from = w[word];
    if constexpr (BITS == 6) {
        if (i % LANE_CODES >= 12) from = last_codes(w[word - 2], w[word - 1], w[word]);
    }
    if constexpr (BYTES && SPREAD && LOG == 8) return __byte_perm(from, low, 0x5504 | (i % 4) << 4);
    u32 v;
    if (shift + BITS > 32) {
        v = __funnelshift_r(from, w[word + 1 < BITS ? word + 1 : word], shift) << LOG;
    } else {
        v = shift >= LOG ? from >> (shift - LOG) : from << (LOG - shift);
    }
    u32 out;
    asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(out) : "r"(v), "n"(MASK), "r"(low)); // v & MASK | low
    return out;
}

// The code of row `row` and subspace `j`, for kernels that walk a row.
__device__ __forceinline__ u32 code_of(const u32* codes, u32 code_tiles, u32 row, u32 j) {
    const u32* tile = codes + ((u64)(row / TILE_ROWS) * code_tiles + j / TILE_CODES) * TILE_WORDS;
    const u32 lane = (row % 8) * 4 + (j % TILE_CODES) / LANE_CODES;
    const u32 i = (row % TILE_ROWS) / 8 * LANE_CODES + j % LANE_CODES;
    if constexpr (BITS == 6) {
        auto word = [&](u32 k) { return tile[plane_word(lane, i / LANE_CODES * 3 + k)]; };
        const bool last = i % LANE_CODES >= 12;
        const u32 from = last ? last_codes(word(0), word(1), word(2)) : word(i % LANE_CODES / 4);
        return from >> (i % 4 * 8) & 63;
    }
    const u32 bit = i * BITS;
    const u32 low = tile[plane_word(lane, bit / 32)];
    const u32 high = bit % 32 + BITS > 32 ? tile[plane_word(lane, bit / 32 + 1)] : 0;
    return __funnelshift_r(low, high, bit % 32) & ((1u << BITS) - 1u);
}

// A codebook entry as words: pairs of f16 (d = 1: the one value twice).
constexpr int ENTRY_WORDS = ENTRY == 1 ? 1 : ENTRY / 2, ENTRY_BYTES = ENTRY_WORDS * 4;
constexpr int ENTRY_LOG = ENTRY_WORDS == 1 ? 2 : ENTRY_WORDS == 2 ? 3 : 4;
// Pairs of weights of a lane in a row of a tile, and the mma k-steps that use them, two a step.
constexpr int PAIRS = LANE_CODES * ENTRY / 2, STEPS = PAIRS / 2;

struct Entry { u32 word[ENTRY_WORDS]; };

// Loads an entry from a shared-memory address: adding a constant to it is free, adding one to a generic pointer is not.
__device__ __forceinline__ Entry load_entry(u32 at) {
    Entry e;
    if constexpr (ENTRY_WORDS == 1) {
        asm volatile("ld.shared.u32 %0, [%1];" : "=r"(e.word[0]) : "r"(at));
    } else if constexpr (ENTRY_WORDS == 2) {
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(e.word[0]), "=r"(e.word[1]) : "r"(at));
    } else {
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(e.word[0]), "=r"(e.word[1]), "=r"(e.word[2]), "=r"(e.word[3]) : "r"(at));
    }
    return e;
}

__device__ __forceinline__ Entry load_entry(const char* at) {
    Entry e;
    if constexpr (ENTRY_WORDS == 1) {
        e.word[0] = *reinterpret_cast<const u32*>(at);
    } else if constexpr (ENTRY_WORDS == 2) {
        const uint2 v = *reinterpret_cast<const uint2*>(at);
        e.word[0] = v.x, e.word[1] = v.y;
    } else {
        const uint4 v = *reinterpret_cast<const uint4*>(at);
        e.word[0] = v.x, e.word[1] = v.y, e.word[2] = v.z, e.word[3] = v.w;
    }
    return e;
}

// Looks up the pairs of weights of a lane's codes `first`, first + 1, ... (0-15: row g, 16-31: row g + 8) in the table at
// `at(code's column)`, a pointer or a shared-memory address, whose entries are 1 << LOG bytes apart and begin at `low`.
template <int LOG, int COUNT, class Base>
__device__ __forceinline__ void pairs_of(u32 (&pairs)[COUNT], const u32 (&w)[BITS], int first, u32 low, Base at) {
#pragma unroll
    for (int i = 0; i < COUNT * 2 / ENTRY; i++) {
        const Entry e = load_entry(at((first + i) % LANE_CODES) + code_at<LOG>(w, first + i, low));
        if constexpr (ENTRY == 1) {
            pairs[i / 2] = i % 2 ? __byte_perm(pairs[i / 2], e.word[0], 0x5410) : e.word[0];
        } else {
#pragma unroll
            for (int k = 0; k < ENTRY_WORDS; k++) pairs[i * ENTRY_WORDS + k] = e.word[k];
        }
    }
}

#ifdef PQ_TOKENS
constexpr int TOKENS = PQ_TOKENS;          // rows of x, at most
constexpr bool SPLIT = TOKENS <= 4;        // x as f16 and f16 remainder
constexpr int COLUMNS = SPLIT ? 2 * TOKENS : TOKENS;
constexpr int NT = (COLUMNS + 7) / 8;      // 8-column operands

// Passes the lane's part of a tile's 16 x TOKENS sums to at(token, row, sum).
template <class At>
__device__ __forceinline__ void store_sums(const f32 (&acc)[NT][4], u32 lane, At at) {
    const u32 g = lane / 4, t = lane % 4;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        if constexpr (SPLIT) {
            const u32 token = nt * 4 + t;
            if (token < TOKENS) {
                at(token, g, acc[nt][0] + acc[nt][1]);
                at(token, g + 8, acc[nt][2] + acc[nt][3]);
            }
        } else {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const u32 token = nt * 8 + 2 * t + c;
                if (token < TOKENS) {
                    at(token, g, acc[nt][c]);
                    at(token, g + 8, acc[nt][2 + c]);
                }
            }
        }
    }
}

// acc += a tile's weights times x, a few codes at a time to limit registers. IN_TURNS: two accumulators in turns, since an
// mma waits for the previous one with the same accumulator.
template <int LOG, bool IN_TURNS = false, class Base>
__device__ __forceinline__ void multiply_tile(f32 (&acc)[NT][4], const u32 (&w)[BITS], const u32 (&b)[NT][STEPS][2],
                                              u32 low, Base at) {
    constexpr int CODES = ENTRY == 1 ? 8 : ENTRY == 2 ? 4 : 2, NOW = CODES * ENTRY / 2;
    f32 other[NT][4] = {};
#pragma unroll
    for (int first = 0; first < LANE_CODES; first += CODES) {
        u32 upper[NOW], lower[NOW];
        pairs_of<LOG>(upper, w, first, low, at);
        pairs_of<LOG>(lower, w, LANE_CODES + first, low, at);
#pragma unroll
        for (int p = 0; p < NOW; p += 2) {
            const int s = (first * ENTRY / 2 + p) / 2;
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                f32 (&sum)[4] = IN_TURNS && s % 2 ? other[nt] : acc[nt];
                mma(sum, upper[p], lower[p], upper[p + 1], lower[p + 1], b[nt][s][0], b[nt][s][1]);
            }
        }
    }
    if constexpr (IN_TURNS) {
#pragma unroll
        for (int i = 0; i < NT * 4; i++) acc[i / 4][i % 4] += other[i / 4][i % 4];
    }
}
#endif

#ifdef PQ_TABLE_AT
// The table's shared-memory address is a compile-time constant, which every lookup's instruction contains: after all static
// shared memory of the kernels.
constexpr u32 TABLE_AT = PQ_TABLE_AT;

__device__ __forceinline__ char* table_start() {
    return dynamic_shared + (TABLE_AT - (u32)__cvta_generic_to_shared(dynamic_shared));
}
#endif

#ifdef PQ_REPLICAS
// The codebook in shared memory, each entry PQ_REPLICAS times side by side: with 128 bytes of copies no two lanes of a warp
// use the same bank. PQ_SPREAD: entries lie 256 bytes apart and number 256 (64 entries four times), so that code_at gets the
// offset of a code in a byte in one instruction.
constexpr int REPLICAS = PQ_REPLICAS, COPIES_BYTES = REPLICAS * ENTRY_BYTES;
__device__ constexpr int log2_of(int n) { return n <= 1 ? 0 : 1 + log2_of(n / 2); }
constexpr int TABLE_LOG = SPREAD ? 8 : log2_of(COPIES_BYTES), TABLE_ENTRIES = SPREAD ? 256 : 1 << BITS;
constexpr int TABLE_BYTES = TABLE_ENTRIES << TABLE_LOG;

__device__ __forceinline__ void fill_table(char* table, const u32* codebook) {
    constexpr u32 PARTS = COPIES_BYTES / 16;
    auto value = [&](u32 i) {
        const u32* entry = codebook + i / PARTS % (1 << BITS) * ENTRY_WORDS;
        if constexpr (ENTRY_WORDS == 1) {
            const u32 v = load_stream(entry);
            return make_uint4(v, v, v, v);
        } else if constexpr (ENTRY_WORDS == 2) {
            const uint2 v = load_stream(reinterpret_cast<const uint2*>(entry));
            return make_uint4(v.x, v.y, v.x, v.y);
        } else {
            return load_stream(reinterpret_cast<const uint4*>(entry));
        }
    };
    constexpr u32 COUNT = TABLE_ENTRIES * PARTS, BATCHED = 4;
    for (u32 first = threadIdx.x; first < COUNT; first += BATCHED * blockDim.x) {
        uint4 v[BATCHED];
#pragma unroll
        for (u32 k = 0; k < BATCHED; k++) {
            // Past the end the last entry is loaded again: with a condition the compiler keeps the previous round's and
            // spills.
            v[k] = value(min(first + k * blockDim.x, COUNT - 1));
        }
#pragma unroll
        for (u32 k = 0; k < BATCHED; k++) {
            const u32 i = first + k * blockDim.x;
            if (i < COUNT) reinterpret_cast<uint4*>(table + (i / PARTS << TABLE_LOG))[i % PARTS] = v[k];
        }
    }
}

// Fills the table unless it holds this codebook already: a decode step's matrices share one codebook.
__device__ __forceinline__ void use_table(char* table, const u32* codebook) {
#ifdef PERSISTENT
    if (table_of == codebook) return;
    __syncthreads();
    if (threadIdx.x == 0) table_of = codebook;
#endif
    fill_table(table, codebook);
}

__device__ __forceinline__ u32 lane_offset(u32 lane) { return lane % REPLICAS * ENTRY_BYTES; }

// Whether a block leaves registers for a block of the next kernel (BOUNDS_ALONE): only where that does not spill.
constexpr bool ROOM = BITS <= 8 && D <= 4;
#endif
