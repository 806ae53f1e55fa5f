// A warp's share of a KV split on tensor cores: f16 keys and values, up to four query heads. Lanes load the operands of
// mma.sync as they are: no shared memory, no conversion.
//
// Scores: queries (A) by keys (B), 8 positions at a time. A lane's 16 bytes of a key are two k-steps of B, since the
// queries' elements are in the same order. Rows 0 to 3 of A are the queries in f16, rows 4 to 7 their remainders, so that no
// precision is lost; a shuffle adds both. Outputs: values (A) by weights (B). The scores' layout is B's; lanes of the
// queries' rows give the weights in f16, those of the remainders' rows their remainders. A pairs two positions: a byte
// permutation of two loaded values.
//
// Weights are relative to the largest score so far, give or take SLACK: most tiles only add to the sums.
// Bound: memory; 8 positions take 130 instructions, by FMAs (attention_lanes.cuh) 540.
#if defined(GROUP) && defined(CACHE_F16)
template <u32 WARPS> struct Tiles {
    static constexpr u32 TILE = 8, ROUND = WARPS * TILE, DEPTH = 1; // positions of a tile; of all warps' tiles; tiles in flight
    static constexpr u32 KEYS = (HEAD_DIM + 31) / 32, VALUES = (HEAD_DIM + 63) / 64; // loads of a lane a position
    static constexpr u32 AT_ONCE = DEPTH * ROUND; // positions that a block has in flight
    static constexpr f32 SLACK = 8.f;
    static_assert(GROUP <= 4, "four heads and their remainders fill the 8 columns");
    // f16 queries in rows 0 to 3, their remainders in rows 4 to 7; padded against bank conflicts.
    struct Queries {
        __align__(16) u16 rows[8][DIM + 32];
        __device__ __forceinline__ void store(u32 h, u32 e, f32 v) {
            rows[h][e] = to_f16(v);
            rows[4 + h][e] = to_f16(v - from_f16(rows[h][e]));
        }
    };
    // Lane (g, t) holds the key of position g, elements 32 j + 8 t to + 7; values of positions 2 t and 2 t + 1, elements
    // 64 j + 8 g to + 7; scores and weights of head g % 4 at positions 2 t and 2 t + 1; for outputs see store().
    const u32 g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    Raw k[DEPTH][KEYS], v[DEPTH][2][VALUES];
    f32 top = LOWEST, sum = 0.f, out[VALUES][4][4] = {};
    u32 p; // the tile's first position

    __device__ __forceinline__ void fetch_keys(const KvSplit& of, u32 slot, u32 at) {
#pragma unroll
        for (u32 j = 0; j < KEYS; j++) of.fetch_key(k[slot][j], at + g, 32 * j + 8 * t);
    }
    __device__ __forceinline__ void fetch_values(const KvSplit& of, u32 slot, u32 at) {
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
#pragma unroll
            for (u32 j = 0; j < VALUES; j++) of.fetch_value(v[slot][i][j], at + 2 * t + i, 64 * j + 8 * g);
        }
    }

    // Loads the first positions.
    __device__ __forceinline__ void start(const KvSplit& of) {
        p = of.begin + (threadIdx.x >> 5) * TILE;
#pragma unroll
        for (u32 slot = 0; slot < DEPTH; slot++) {
#pragma unroll
            for (u32 j = 0; j < KEYS; j++) k[slot][j] = Raw{};
#pragma unroll
            for (u32 j = 0; j < VALUES; j++) v[slot][0][j] = v[slot][1][j] = Raw{};
            fetch_keys(of, slot, p + slot * ROUND);
            fetch_values(of, slot, p + slot * ROUND);
        }
    }

    // Goes through the split with `count` queries.
    __device__ __forceinline__ void run(const KvSplit& of, const Queries& queries, u32 count) {
        const bool used = g % 4 < count;
#pragma unroll 1
        for (; p < of.end; p += DEPTH * ROUND) {
#pragma unroll
            for (u32 slot = 0; slot < DEPTH; slot++) {
                const u32 at = p + slot * ROUND;
                if (at >= of.end) break;
                if (of.end != of.cached && of.cached - at < TILE) take_own(of, slot, at);
                f32 score[2][4] = {};
#pragma unroll
                for (u32 j = 0; j < KEYS; j++) {
                    uint4 q = {};
                    if (used) q = *reinterpret_cast<const uint4*>(&queries.rows[g][32 * j + 8 * t]);
                    const u32* words = k[slot][j].words;
                    mma(score[0], q.x, 0, q.y, 0, words[0], words[1]);
                    mma(score[1], q.z, 0, q.w, 0, words[2], words[3]);
                }
                fetch_keys(of, slot, at + DEPTH * ROUND);
                f32 s[2];
#pragma unroll
                for (u32 i = 0; i < 2; i++) {
                    s[i] = score[0][i] + score[1][i];
                    s[i] += __shfl_xor_sync(~0u, s[i], 16);
                    if (at + 2 * t + i >= of.end) s[i] = LOWEST;
                }
                if (__any_sync(~0u, fmaxf(s[0], s[1]) > top + SLACK)) raise(fmaxf(s[0], s[1]));
                const f32 a = exp2f(s[0] - top), b = exp2f(s[1] - top);
                sum += a + b;
                const u32 weights = half_of(a, b);
#pragma unroll
                for (u32 j = 0; j < VALUES; j++) {
#pragma unroll
                    for (u32 w = 0; w < 4; w++) {
                        const u32 x = v[slot][0][j].words[w], y = v[slot][1][j].words[w];
                        mma_of_8(out[j][w], __byte_perm(x, y, 0x5410), __byte_perm(x, y, 0x7632), weights);
                    }
                }
                fetch_values(of, slot, at + DEPTH * ROUND);
            }
        }
    }

    // A pair of weights as f16, or, in the remainders' lanes, their f16 remainders.
    __device__ __forceinline__ u32 half_of(f32 a, f32 b) const {
        const u32 high = pack_f16(a, b), low = pack_f16(a - low_f16(high), b - high_f16(high));
        return g < 4 ? high : low;
    }

    // Takes the row's own key and value, which are not in the cache yet.
    __device__ __forceinline__ void take_own(const KvSplit& of, u32 slot, u32 at) {
#pragma unroll
        for (u32 j = 0; j < KEYS; j++) {
            if (of.is_own(at + g)) k[slot][j] = load_head(of.own_key, 32 * j + 8 * t);
        }
#pragma unroll
        for (u32 i = 0; i < 2; i++) {
#pragma unroll
            for (u32 j = 0; j < VALUES; j++) {
                if (of.is_own(at + 2 * t + i)) v[slot][i][j] = load_head(of.own_value, 64 * j + 8 * g);
            }
        }
    }

    // Raises the reference score, and scales sum and outputs to it.
    __device__ __forceinline__ void raise(f32 score) {
        score = fmaxf(score, top);
        score = fmaxf(score, __shfl_xor_sync(~0u, score, 1));
        score = fmaxf(score, __shfl_xor_sync(~0u, score, 2));
        const f32 keep = exp2f(top - score);
        const bool first = top == LOWEST; // the same in all lanes
        top = score;
        if (first) return;
        sum *= keep;
        // A lane's outputs belong to heads 2 t and 2 t + 1.
        const f32 keeps[2] = {__shfl_sync(~0u, keep, 8 * t), __shfl_sync(~0u, keep, 8 * t + 4)};
#pragma unroll
        for (u32 j = 0; j < VALUES; j++) {
#pragma unroll
            for (u32 w = 0; w < 4; w++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) out[j][w][i] *= keeps[i % 2];
            }
        }
    }

    // Adds the remainders' columns to the heads'. Lanes t and t + 2 have the same heads and do half of the elements each.
    __device__ __forceinline__ void store(Found<WARPS>& found, u32 count) const {
        const u32 warp = threadIdx.x >> 5, upper = t / 2;
#pragma unroll
        for (u32 j = 0; j < VALUES; j++) {
#pragma unroll
            for (u32 c = 0; c < 2; c++) {
                f32 e[4];
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const f32 low = out[j][i / 2][i % 2 * 2 + c], high = out[j][2 + i / 2][i % 2 * 2 + c];
                    e[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, 2);
                }
                const u32 h = t % 2 * 2 + c;
                if (h < count) {
                    *reinterpret_cast<float4*>(&found.out[warp][h][64 * j + 8 * g + 4 * upper]) = make_float4(e[0], e[1], e[2], e[3]);
                }
            }
        }
        f32 all = sum;
        all += __shfl_xor_sync(~0u, all, 1);
        all += __shfl_xor_sync(~0u, all, 2);
        if (t == 0 && g < count) found.scores[warp][g] = make_float2(top, all);
    }

    // d += a b as mma(), with 8 instead of 16 columns of a.
    __device__ static __forceinline__ void mma_of_8(f32 (&d)[4], u32 a0, u32 a1, u32 b) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(b));
    }
};
template <u32 WARPS> using Share = Tiles<WARPS>;
#elif defined(GROUP)
template <u32 WARPS> using Share = Lanes<WARPS>;
#endif
