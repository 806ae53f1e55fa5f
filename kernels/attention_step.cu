// Attention of one row in a step (step.cu): from the raw outputs of the projections to the attention's output, not
// rotated, but with the rotation's signs where the next matrix's kernel does the rest. What the cache holds already does
// not depend on the phase before: its first positions are on their way to registers, and the next to L2, before that is
// waited for.
//
// attention_near, where the row sees few positions: a block a query head does it all.
// attention_far: a block takes the GROUP heads that share a key/value head, and one of SPLITS stretches of positions;
// attention_join joins them, a block 32 elements of the output.
//
// A position's head is 8 elements a lane; a warp works on 32 / LANES positions at once, every lane keeping its own
// running maximum, sum and output for its positions, so that a position costs log2 LANES shuffles per head and nothing
// else is exchanged until the end. ROUNDS positions are taken together; their keys and values are asked for when those
// before them are used up. The row's own key is turned by every block that needs it, and written by one.
// Constants: HEAD_DIM, GROUP, SPLITS, CACHE_F16, and attention_lanes.cuh's.
constexpr int WARPS = STEP_THREADS / 32;
constexpr u32 DIM = LANES * EACH, STRIDED = (DIM + 31) / 32; // elements of a head, zeros behind them; a lane's, 32 apart

struct Row {
    const f32 *qkv, *q_norm, *k_norm, *inv_freq;
    Cache *k_cache, *v_cache;
};

// The maximum, sum and outputs of COUNT heads from `head` on over positions `begin` to `end` of the cache and, if `own`,
// the row's own: to top(), sum() and out() of shared memory, a warp's each.
template <int COUNT>
struct Attend {
    f32 (*out)[COUNT][DIM];  // [WARPS]
    f32 (*heads)[DIM];       // q of each head, k, v
    f32 (*tops)[COUNT], (*sums)[COUNT];

    __device__ __forceinline__ Attend() {
        f32* at = reinterpret_cast<f32*>(phase_shared());
        out = reinterpret_cast<f32 (*)[COUNT][DIM]>(at);
        heads = reinterpret_cast<f32 (*)[DIM]>(at += WARPS * COUNT * DIM);
        tops = reinterpret_cast<f32 (*)[COUNT]>(at += (COUNT + 2) * DIM);
        sums = tops + WARPS;
    }

    // Normalises and turns a head of q (task < COUNT), k or v, a warp each.
    __device__ __forceinline__ void prepare(const Row& row, const RopeCacheParams& params, u32 head, u32 kv, u64 cache_at,
                                            f32 score_scale, bool writes, const f32 (&angles)[STRIDED]) {
        const u32 lane = threadIdx.x & 31, task = threadIdx.x >> 5, half = params.rotary_dim / 2;
        if (task >= COUNT + 2) return;
        const bool query = task < COUNT, key = task == COUNT;
        const f32* x = row.qkv + (query ? (head + task) * params.q_stride : (key ? params.k_offset : params.v_offset) + kv * HEAD_DIM);
        const f32* norm = query ? row.q_norm : key ? row.k_norm : nullptr;
        f32 v[STRIDED], squares = 0.f;
#pragma unroll
        for (u32 i = 0; i < STRIDED; i++) {
            const u32 e = lane + i * 32;
            v[i] = e < HEAD_DIM ? x[e] : 0.f;
            squares += v[i] * v[i];
        }
        const f32 norm_scale = norm ? rsqrtf(warp_sum(squares) / HEAD_DIM + params.eps) : 1.f;
#pragma unroll
        for (u32 i = 0; i < STRIDED; i++) {
            const u32 e = lane + i * 32;
            if (e >= DIM) continue;
            if (norm && e < HEAD_DIM) v[i] *= (norm[e] + params.weight_offset) * norm_scale;
            heads[task][e] = v[i];
        }
        __syncwarp();
#pragma unroll
        for (u32 i = 0; i < STRIDED; i++) {
            const u32 e = lane + i * 32;
            if ((!query && !key) || e >= params.rotary_dim) continue;
            f32 sine, cosine;
            sine_cosine(angles[i], sine, cosine);
            v[i] = v[i] * cosine + (e < half ? -heads[task][e + half] : heads[task][e - half]) * sine;
        }
        __syncwarp();
        Cache* cache = key ? row.k_cache : row.v_cache;
#pragma unroll
        for (u32 i = 0; i < STRIDED; i++) {
            const u32 e = lane + i * 32;
            if (e >= HEAD_DIM) continue;
            // As the cache will give it back.
            heads[task][e] = query ? v[i] * score_scale * LOG2E : from_cache(to_cache(v[i]));
            if (!query && writes) cache[cache_at + (u64)row_position * HEAD_DIM + e] = to_cache(v[i]);
        }
    }

    __device__ __forceinline__ void run(const Row& row, const RopeCacheParams& params, u32 head, u32 begin, u32 end, bool own,
                                        f32 score_scale) {
        const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, first = lane % LANES * EACH;
        const u32 group = params.heads / params.kv_heads, kv = head / group, position = row_position;
        const u64 cache_at = ((u64)row_slot * params.kv_heads + kv) * params.context * HEAD_DIM;
        constexpr u32 ROUND = WARPS * POSITIONS, ROUNDS = COUNT * sizeof(Cache) <= 4 ? 4 : COUNT * sizeof(Cache) <= 8 ? 2 : 1;
        Raw k[ROUNDS], v[ROUNDS];
        auto fetch = [&](Raw& raw, const Cache* cache, u32 p) {
            if (p - lane / LANES < end) raw = load_head(cache + cache_at + (u64)min(p, end - 1) * HEAD_DIM, first);
        };
        u32 p0 = begin + warp * POSITIONS + lane / LANES;
#pragma unroll
        for (u32 round = 0; round < ROUNDS; round++) {
            k[round] = v[round] = Raw{};
            fetch(k[round], row.k_cache, p0 + round * ROUND);
            fetch(v[round], row.v_cache, p0 + round * ROUND);
        }
        constexpr u32 SIZE = HEAD_DIM * sizeof(Cache), AHEAD = 64 << 10;
        const u32 bytes = end > begin ? min((end - begin) * SIZE, AHEAD) : 0;
        for (u32 i = ROUNDS * ROUND * SIZE + threadIdx.x * 128; i < bytes; i += blockDim.x * 128) {
            prefetch_l2(reinterpret_cast<const char*>(row.k_cache + cache_at + (u64)begin * HEAD_DIM) + i);
            prefetch_l2(reinterpret_cast<const char*>(row.v_cache + cache_at + (u64)begin * HEAD_DIM) + i);
        }
        f32 angles[STRIDED];
        const u32 half = params.rotary_dim / 2;
#pragma unroll
        for (u32 i = 0; i < STRIDED; i++) {
            const u32 e = lane + i * 32;
            angles[i] = warp <= COUNT && e < params.rotary_dim ? (f32)position * row.inv_freq[e % half] : 0.f;
        }
        wait_inputs();
        prepare(row, params, head, kv, cache_at, score_scale, own && head % group == 0, angles);
        __syncthreads();

        f32 q[COUNT][EACH], sums_of[COUNT] = {}, top[COUNT], outs[COUNT][EACH] = {};
#pragma unroll
        for (int h = 0; h < COUNT; h++) {
            top[h] = LOWEST;
#pragma unroll
            for (int i = 0; i < EACH; i++) q[h][i] = heads[h][first + i];
        }
        auto score_of = [&](int h, auto key) {
            f32 score = 0.f;
#pragma unroll
            for (int i = 0; i < EACH; i++) score += q[h][i] * key(i);
#pragma unroll
            for (int o = LANES / 2; o; o >>= 1) score += __shfl_xor_sync(~0u, score, o);
            return score;
        };
        if (own && warp == 0) {
#pragma unroll
            for (int h = 0; h < COUNT; h++) {
                const f32 score = score_of(h, [&](int i) { return heads[COUNT][first + i]; });
                if (lane >= LANES) continue;
                top[h] = score, sums_of[h] = 1.f;
#pragma unroll
                for (int i = 0; i < EACH; i++) outs[h][i] = heads[COUNT + 1][first + i];
            }
        }
#pragma unroll 1
        for (; p0 - lane / LANES < end; p0 += ROUNDS * ROUND) {
            f32 scores[ROUNDS][COUNT];
#pragma unroll
            for (u32 round = 0; round < ROUNDS; round++) {
#pragma unroll
                for (int h = 0; h < COUNT; h++) scores[round][h] = score_of(h, [&](int i) { return k[round][i]; });
                fetch(k[round], row.k_cache, p0 + (ROUNDS + round) * ROUND);
            }
#pragma unroll
            for (int h = 0; h < COUNT; h++) {
                f32 peak = top[h];
#pragma unroll
                for (u32 round = 0; round < ROUNDS; round++) {
                    if (p0 + round * ROUND < end) peak = fmaxf(peak, scores[round][h]);
                }
                const f32 keep = exp2f(top[h] - peak);
                top[h] = peak;
                sums_of[h] *= keep;
#pragma unroll
                for (int i = 0; i < EACH; i++) outs[h][i] *= keep;
            }
#pragma unroll
            for (u32 round = 0; round < ROUNDS; round++) {
#pragma unroll
                for (int h = 0; h < COUNT; h++) {
                    const f32 weight = p0 + round * ROUND < end ? exp2f(scores[round][h] - top[h]) : 0.f;
                    sums_of[h] += weight;
#pragma unroll
                    for (int i = 0; i < EACH; i++) outs[h][i] += weight * v[round][i];
                }
                fetch(v[round], row.v_cache, p0 + (ROUNDS + round) * ROUND);
            }
        }
        // Join the lanes that hold the same elements.
#pragma unroll
        for (int h = 0; h < COUNT; h++) {
            f32 peak = top[h];
#pragma unroll
            for (int o = 16; o >= LANES; o >>= 1) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, o));
            const f32 keep = exp2f(top[h] - peak);
            f32 sum = sums_of[h] * keep;
#pragma unroll
            for (int o = 16; o >= LANES; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                f32 e = outs[h][i] * keep;
#pragma unroll
                for (int o = 16; o >= LANES; o >>= 1) e += __shfl_xor_sync(~0u, e, o);
                if (lane < LANES) out[warp][h][first + i] = e;
            }
            if (lane == 0) tops[warp][h] = peak, sums[warp][h] = sum;
        }
        __syncthreads();
    }

    // Element `e` of a head over all warps, not divided by `total`.
    __device__ __forceinline__ f32 joined(u32 h, u32 e, f32& peak, f32& total) const {
        peak = tops[0][h];
#pragma unroll
        for (int w = 1; w < WARPS; w++) peak = fmaxf(peak, tops[w][h]);
        f32 sum = 0.f;
        total = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const f32 share = exp2f(tops[w][h] - peak);
            total += sums[w][h] * share;
            sum += out[w][h][e] * share;
        }
        return sum;
    }
};

KERNEL attention_near(const f32* qkv, const f32* q_norm, const f32* k_norm, const f32* inv_freq, Cache* k_cache,
                      Cache* v_cache, f32* y, RopeCacheParams params, f32 score_scale, u32 gated, u32 with_signs) {
    const u32 head = blockIdx.x;
    Attend<1> attend;
    attend.run({qkv, q_norm, k_norm, inv_freq, k_cache, v_cache}, params, head, 0, row_position, true, score_scale);
    for (u32 e = threadIdx.x; e < HEAD_DIM; e += blockDim.x) {
        f32 peak, total, v = attend.joined(0, e, peak, total);
        v /= with_signs ? total * rotation_sign(head * HEAD_DIM + e) : total;
        y[head * HEAD_DIM + e] = gated ? v * sigmoid(qkv[head * params.q_stride + HEAD_DIM + e]) : v;
    }
}

// Grid: (heads / GROUP, 1, SPLITS).
KERNEL attention_far(const f32* qkv, const f32* q_norm, const f32* k_norm, const f32* inv_freq, Cache* k_cache,
                     Cache* v_cache, f32* partial, f32* sums, RopeCacheParams params, f32 score_scale) {
    const u32 head = blockIdx.x * GROUP, each = (row_position + SPLITS - 1) / SPLITS;
    const u32 begin = min(blockIdx.z * each, row_position), end = min(begin + each, row_position);
    Attend<GROUP> attend;
    attend.run({qkv, q_norm, k_norm, inv_freq, k_cache, v_cache}, params, head, begin, end, blockIdx.z == 0, score_scale);
    for (u32 i = threadIdx.x; i < GROUP * HEAD_DIM; i += blockDim.x) {
        const u32 h = i / HEAD_DIM, e = i % HEAD_DIM, at = (head + h) * SPLITS + blockIdx.z;
        f32 peak, total;
        partial[at * HEAD_DIM + e] = attend.joined(h, e, peak, total);
        if (e == 0) sums[at * 2] = peak, sums[at * 2 + 1] = total;
    }
}

// Grid: (outputs / 32).
KERNEL attention_join(const f32* qkv, const f32* partial, const f32* sums, f32* y, AttentionParams params) {
    f32 (*parts)[32] = reinterpret_cast<f32 (*)[32]>(phase_shared());
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 i = min(blockIdx.x * 32 + lane, params.heads * HEAD_DIM - 1), h = i / HEAD_DIM, e = i % HEAD_DIM;
    f32 v = 0.f, peak = LOWEST, total = 0.f;
#pragma unroll
    for (u32 s = warp; s < SPLITS; s += WARPS) {
        // A running maximum, as of a stretch of stretches.
        const u32 at = h * SPLITS + s;
        const f32 top = sums[at * 2], joined = fmaxf(peak, top), keep = exp2f(peak - joined), share = exp2f(top - joined);
        v = v * keep + partial[at * HEAD_DIM + e] * share;
        total = total * keep + sums[at * 2 + 1] * share;
        peak = joined;
    }
    parts[warp][lane] = v, parts[WARPS + warp][lane] = peak, parts[2 * WARPS + warp][lane] = total;
    __syncthreads();
    if (warp || blockIdx.x * 32 + lane >= params.heads * HEAD_DIM) return;
    v = total = 0.f, peak = LOWEST;
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) peak = fmaxf(peak, parts[WARPS + w][lane]);
#pragma unroll
    for (u32 w = 0; w < WARPS; w++) {
        const f32 share = exp2f(parts[WARPS + w][lane] - peak);
        v += parts[w][lane] * share, total += parts[2 * WARPS + w][lane] * share;
    }
    v /= params.rotate ? total * rotation_sign(i) : total;
    y[i] = params.gated ? v * sigmoid(qkv[h * params.q_stride + HEAD_DIM + e]) : v;
}
