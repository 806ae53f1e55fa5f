// Attention of few rows: the cache's elements, and a warp's share of a KV split in f32 FMAs, for any cache type and head
// length. attention_tiles.cuh does the same on tensor cores.
//
// A head is LANES lanes of EACH elements, so a warp works on 32 / LANES positions at once. Every lane keeps a running
// maximum, sum and output for its positions: a position costs log2 LANES shuffles a head, and lanes exchange nothing else
// until the end. ROUNDS positions are processed together; the next ones are loaded as soon as these are used up.
// Constants: HEAD_DIM, CACHE_F16, and for few rows GROUP, the query heads processed together.

constexpr int EACH = 8;
constexpr int PARTS = (HEAD_DIM + EACH - 1) / EACH;
constexpr int LANES = PARTS <= 1 ? 1 : PARTS <= 2 ? 2 : PARTS <= 4 ? 4 : PARTS <= 8 ? 8 : PARTS <= 16 ? 16 : 32;
constexpr u32 DIM = LANES <= 8 ? 64 : LANES * EACH; // elements of a head in shared memory, zero-padded
constexpr f32 LOG2E = 1.4426950408889634f, LOWEST = -1e30f;

// The first position that a row at `position` sees, of a window of so many positions; 0: no window.
__device__ __forceinline__ u32 first_seen(u32 window, u32 position) {
    return window && position >= window ? position + 1 - window : 0;
}

// EACH elements of a key or value in the cache's type.
struct Raw {
#ifdef CACHE_F16
    u32 words[EACH / 2];
    __device__ __forceinline__ f32 operator[](int i) const { return i % 2 ? high_f16(words[i / 2]) : low_f16(words[i / 2]); }
#else
    f32 values[EACH];
    __device__ __forceinline__ f32 operator[](int i) const { return values[i]; }
#endif
};

__device__ __forceinline__ Raw load_head(const Cache* at, u32 first) {
    Raw raw = {};
    if constexpr (HEAD_DIM % EACH == 0) {
        if (first >= HEAD_DIM) return raw;
#ifdef CACHE_F16
        const uint4 q = *reinterpret_cast<const uint4*>(at + first);
        raw.words[0] = q.x, raw.words[1] = q.y, raw.words[2] = q.z, raw.words[3] = q.w;
#else
#pragma unroll
        for (int i = 0; i < EACH; i += 4) {
            const float4 q = *reinterpret_cast<const float4*>(at + first + i);
            raw.values[i] = q.x, raw.values[i + 1] = q.y, raw.values[i + 2] = q.z, raw.values[i + 3] = q.w;
        }
#endif
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (first + i >= HEAD_DIM) continue;
#ifdef CACHE_F16
            raw.words[i / 2] |= (u32)at[first + i] << (i % 2 * 16);
#else
            raw.values[i] = at[first + i];
#endif
        }
    }
    return raw;
}

#ifdef GROUP
// The same from global memory past L1, since nothing is read twice.
__device__ __forceinline__ Raw load_once(const Cache* at, u32 first) {
#ifdef CACHE_F16
    if constexpr (HEAD_DIM % EACH == 0) {
        Raw raw = {};
        if (first >= HEAD_DIM) return raw;
        asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(raw.words[0]), "=r"(raw.words[1]), "=r"(raw.words[2]), "=r"(raw.words[3]) : "l"(at + first));
        return raw;
    }
#endif
    return load_head(at, first);
}

// A KV split of one head: positions `begin` to `end`. Those before `cached` are in the cache; the last one, if it is not, is
// the row's own, in shared memory.
struct KvSplit {
    const Cache *keys, *values; // at position 0
    u32 begin, cached, end;
    const Cache *own_key, *own_value;

    __device__ __forceinline__ void fetch_key(Raw& key, u32 position, u32 first) const {
        if (position < cached) key = load_once(keys + (u64)position * HEAD_DIM, first);
    }
    __device__ __forceinline__ void fetch_value(Raw& value, u32 position, u32 first) const {
        if (position < cached) value = load_once(values + (u64)position * HEAD_DIM, first);
    }
    __device__ __forceinline__ bool is_own(u32 position) const { return position == cached && position < end; }
};

// Partial softmax of one element of a head: the largest score, and relative to it the sum of the weights and the weighted
// sum of the values. Scores are logarithms to base 2.
struct Joined { f32 peak, total, value; };

// Joins `count` partial results of four neighbouring elements. Lanes l, l + 8, l + 16 and l + 24 take the results in turn,
// AT_ONCE at a time, and each returns one element. scores(i) is the largest score and the sum, values(i) the four elements.
template <u32 AT_ONCE, class Scores, class Values>
__device__ __forceinline__ Joined join_four(u32 count, Scores scores, Values values) {
    const u32 part = threadIdx.x / 8 % 4;
    f32 peak = LOWEST, total = 0.f, v[4] = {};
#pragma unroll 1
    for (u32 first = 0; first < count; first += 4 * AT_ONCE) {
        float2 score[AT_ONCE];
        float4 value[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const u32 i = first + 4 * k + part;
            score[k] = i < count ? scores(i) : make_float2(LOWEST, 0.f);
            value[k] = i < count ? values(i) : make_float4(0.f, 0.f, 0.f, 0.f);
        }
        f32 top = peak;
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) top = fmaxf(top, score[k].x);
        const f32 keep = exp2f(peak - top);
        peak = top, total *= keep;
#pragma unroll
        for (u32 c = 0; c < 4; c++) v[c] *= keep;
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const f32 share = exp2f(score[k].x - peak);
            total += score[k].y * share;
            v[0] += value[k].x * share, v[1] += value[k].y * share, v[2] += value[k].z * share, v[3] += value[k].w * share;
        }
    }
    f32 top = fmaxf(peak, __shfl_xor_sync(~0u, peak, 8));
    top = fmaxf(top, __shfl_xor_sync(~0u, top, 16));
    const f32 share = exp2f(peak - top);
    auto over_lanes = [&](f32 x) {
        x *= share;
        x += __shfl_xor_sync(~0u, x, 8);
        return x + __shfl_xor_sync(~0u, x, 16);
    };
    Joined all = {top, over_lanes(total), 0.f};
#pragma unroll
    for (u32 c = 0; c < 4; c++) {
        const f32 x = over_lanes(v[c]);
        if (c == part) all.value = x;
    }
    return all;
}

// The same for every element of `heads` heads, by all threads of a block; calls done(head, element, Joined).
template <u32 WARPS, u32 AT_ONCE, class Scores, class Values, class Done>
__device__ __forceinline__ void join_all(u32 heads, u32 count, Scores scores, Values values, Done done) {
    for (u32 four = threadIdx.x / 32 * 8 + threadIdx.x % 8; four < heads * (DIM / 4); four += WARPS * 8) {
        const u32 h = four / (DIM / 4), e = four % (DIM / 4) * 4, mine = e + threadIdx.x / 8 % 4;
        const Joined all =
            join_four<AT_ONCE>(count, [&](u32 i) { return scores(i, h); }, [&](u32 i) { return values(i, h, e); });
        if (HEAD_DIM == DIM || mine < HEAD_DIM) done(h, mine, all);
    }
}

// The partial results of a block's warps, in shared memory.
template <u32 WARPS> struct Found {
    f32 out[WARPS][GROUP][DIM];
    float2 scores[WARPS][GROUP]; // the largest score and the sum

    // Joins them; calls done(head, element, Joined) for every element of `count` heads. All threads must call it.
    template <class Done> __device__ __forceinline__ void join(u32 count, Done done) const {
        join_all<WARPS, WARPS / 4>(
            count, WARPS, [&](u32 w, u32 h) { return scores[w][h]; },
            [&](u32 w, u32 h, u32 e) { return *reinterpret_cast<const float4*>(&out[w][h][e]); }, done);
    }
};

template <u32 WARPS> struct Lanes {
    static constexpr u32 POSITIONS = 32 / LANES, ROUND = WARPS * POSITIONS;
    static constexpr u32 ROUNDS = GROUP * sizeof(Cache) <= 4 ? 4 : GROUP * sizeof(Cache) <= 8 ? 2 : 1;
    static constexpr u32 AT_ONCE = ROUNDS * ROUND; // positions that a block has in flight
    struct Queries {
        f32 heads[GROUP][DIM];
        __device__ __forceinline__ void store(u32 h, u32 e, f32 v) { heads[h][e] = v; }
    };
    const u32 first = threadIdx.x % LANES * EACH;
    Raw k[ROUNDS], v[ROUNDS];
    f32 top[GROUP], sum[GROUP] = {}, out[GROUP][EACH] = {};
    u32 p; // the lane's position

    // Loads the first positions.
    __device__ __forceinline__ void start(const KvSplit& of) {
        p = of.begin + (threadIdx.x >> 5) * POSITIONS + threadIdx.x % 32 / LANES;
#pragma unroll
        for (u32 round = 0; round < ROUNDS; round++) {
            k[round] = v[round] = Raw{};
            of.fetch_key(k[round], p + round * ROUND, first);
            of.fetch_value(v[round], p + round * ROUND, first);
        }
    }

    // Goes through the split with `count` queries.
    __device__ __forceinline__ void run(const KvSplit& of, const Queries& queries, u32 count) {
        f32 q[GROUP][EACH];
#pragma unroll
        for (u32 h = 0; h < GROUP; h++) {
            top[h] = LOWEST;
#pragma unroll
            for (int i = 0; i < EACH; i++) q[h][i] = h < count ? queries.heads[h][first + i] : 0.f;
        }
#pragma unroll 1
        for (; p - threadIdx.x % 32 / LANES < of.end; p += ROUNDS * ROUND) {
            f32 scores[ROUNDS][GROUP];
#pragma unroll
            for (u32 round = 0; round < ROUNDS; round++) {
                const u32 at = p + round * ROUND;
                if (of.is_own(at)) k[round] = load_head(of.own_key, first), v[round] = load_head(of.own_value, first);
#pragma unroll
                for (u32 h = 0; h < GROUP; h++) {
                    f32 score = 0.f;
#pragma unroll
                    for (int i = 0; i < EACH; i++) score += q[h][i] * k[round][i];
#pragma unroll
                    for (int o = LANES / 2; o; o >>= 1) score += __shfl_xor_sync(~0u, score, o);
                    scores[round][h] = score;
                }
                of.fetch_key(k[round], at + ROUNDS * ROUND, first);
            }
#pragma unroll
            for (u32 h = 0; h < GROUP; h++) {
                f32 peak = top[h];
#pragma unroll
                for (u32 round = 0; round < ROUNDS; round++) {
                    if (p + round * ROUND < of.end) peak = fmaxf(peak, scores[round][h]);
                }
                const f32 keep = exp2f(top[h] - peak);
                top[h] = peak;
                sum[h] *= keep;
#pragma unroll
                for (int i = 0; i < EACH; i++) out[h][i] *= keep;
            }
#pragma unroll
            for (u32 round = 0; round < ROUNDS; round++) {
                const u32 at = p + round * ROUND;
#pragma unroll
                for (u32 h = 0; h < GROUP; h++) {
                    const f32 weight = at < of.end ? exp2f(scores[round][h] - top[h]) : 0.f;
                    sum[h] += weight;
#pragma unroll
                    for (int i = 0; i < EACH; i++) out[h][i] += weight * v[round][i];
                }
                of.fetch_value(v[round], at + ROUNDS * ROUND, first);
            }
        }
    }

    // Joins the lanes that hold the same elements, and stores the warp's result.
    __device__ __forceinline__ void store(Found<WARPS>& found, u32 count) const {
        const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
        for (u32 h = 0; h < GROUP; h++) {
            f32 peak = top[h];
#pragma unroll
            for (int o = 16; o >= LANES; o >>= 1) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, o));
            const f32 keep = exp2f(top[h] - peak);
            f32 all = sum[h] * keep;
#pragma unroll
            for (int o = 16; o >= LANES; o >>= 1) all += __shfl_xor_sync(~0u, all, o);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                f32 e = out[h][i] * keep;
#pragma unroll
                for (int o = 16; o >= LANES; o >>= 1) e += __shfl_xor_sync(~0u, e, o);
                if (lane < LANES) found.out[warp][h][first + i] = e;
            }
            if (lane == 0) found.scores[warp][h] = make_float2(peak, all);
        }
    }
};
#endif
