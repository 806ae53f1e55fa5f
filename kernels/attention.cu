// Causal attention of each row over its slot's cache: split over positions for few rows (decode), by tiles of rows for
// many (prefill).
//
// attention_split: a block takes one row, GROUP query heads that share a key/value head, and one stretch of positions.
// A position's head is 8 elements a lane; a warp works on 32 / LANES positions at once,
// loading two rounds of them together, every lane keeping its own
// running maximum, sum and output for its positions, so that a position costs log2 LANES shuffles per head and
// nothing else is exchanged until the end. How many of the SPLITS work is decided by the row's position on the
// device: one recorded launch serves every position.
// attention_combine: joins the stretches, multiplies by the gate, rotates. A block a rotation block.
// Constants: HEAD_DIM, GROUP, SPLITS, CACHE_F16.

#ifdef STEP
constexpr int WARPS = STEP_THREADS / 32;
#else
constexpr int WARPS = 16;
#endif
constexpr int EACH = 8;
constexpr int PARTS = (HEAD_DIM + EACH - 1) / EACH;
constexpr int LANES = PARTS <= 1 ? 1 : PARTS <= 2 ? 2 : PARTS <= 4 ? 4 : PARTS <= 8 ? 8 : PARTS <= 16 ? 16 : 32;
constexpr int POSITIONS = 32 / LANES;
constexpr f32 LOG2E = 1.4426950408889634f, LOWEST = -1e30f;

// Positions per stretch for a row with `count` positions to see.
__device__ __forceinline__ u32 stretch(u32 count) {
    const u32 even = (count + SPLITS - 1) / SPLITS;
    constexpr u32 ROUND = WARPS * POSITIONS;
    return max((even + ROUND - 1) / ROUND * ROUND, 2 * ROUND);
}

// A lane's elements of a key or value as they lie in the cache.
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
        if (LANES != PARTS && first >= HEAD_DIM) return raw;
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

__device__ __forceinline__ void load_query(f32 (&v)[EACH], const f32* at, u32 first) {
    if (HEAD_DIM % EACH == 0 && (u64)at % 16 == 0) {
#pragma unroll
        for (int i = 0; i < EACH; i += 4) {
            const float4 q = first < HEAD_DIM ? *reinterpret_cast<const float4*>(at + first + i) : make_float4(0.f, 0.f, 0.f, 0.f);
            v[i] = q.x, v[i + 1] = q.y, v[i + 2] = q.z, v[i + 3] = q.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++) v[i] = first + i < HEAD_DIM ? at[first + i] : 0.f;
    }
}

#ifdef STEP
// A row that sees few positions, in a step: a block a query head does it all, from the raw outputs of the projections
// to the attention's output, not rotated. What the cache holds already is asked for before the projections are done.
// The key at the row's own position is turned by every head that shares it, and written by one of them.
KERNEL attention_near(const f32* qkv, const f32* q_norm, const f32* k_norm, const f32* inv_freq, Cache* k_cache,
                      Cache* v_cache, f32* y, RopeCacheParams params, f32 score_scale, u32 gated) {
    constexpr u32 STRIDED = (HEAD_DIM + 31) / 32;
    __shared__ __align__(16) f32 heads[3][LANES * EACH]; // q, k, v
    __shared__ f32 tops[WARPS], sums[WARPS];
    f32 (*warp_out)[LANES * EACH] = reinterpret_cast<f32 (*)[LANES * EACH]>(phase_shared());
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, first = lane % LANES * EACH;
    const u32 head = blockIdx.x, group = params.heads / params.kv_heads, kv = head / group, position = row_position;
    const u64 cache_at = ((u64)row_slot * params.kv_heads + kv) * params.context * HEAD_DIM;
    for (u32 i = threadIdx.x * 128; i < position * HEAD_DIM * sizeof(Cache); i += blockDim.x * 128) {
        prefetch_l2(reinterpret_cast<const char*>(k_cache + cache_at) + i);
        prefetch_l2(reinterpret_cast<const char*>(v_cache + cache_at) + i);
    }
    f32 angles[STRIDED];
    const u32 half = params.rotary_dim / 2;
#pragma unroll
    for (u32 i = 0; i < STRIDED; i++) {
        const u32 e = lane + i * 32;
        angles[i] = warp < 2 && e < params.rotary_dim ? (f32)position * inv_freq[e % half] : 0.f;
    }
    wait_inputs();

    if (warp < 3) {
        const f32* x = qkv + (warp == 0 ? head * params.q_stride : (warp == 1 ? params.k_offset : params.v_offset) + kv * HEAD_DIM);
        const f32* norm = warp == 0 ? q_norm : warp == 1 ? k_norm : nullptr;
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
            if (e >= LANES * EACH) continue;
            if (norm && e < HEAD_DIM) v[i] *= (norm[e] + params.weight_offset) * norm_scale;
            heads[warp][e] = v[i];
        }
        __syncwarp();
        f32 turned[STRIDED];
#pragma unroll
        for (u32 i = 0; i < STRIDED; i++) {
            const u32 e = lane + i * 32;
            turned[i] = v[i];
            if (warp == 2 || e >= params.rotary_dim) continue;
            f32 sine, cosine;
            sine_cosine(angles[i], sine, cosine);
            turned[i] = v[i] * cosine + (e < half ? -heads[warp][e + half] : heads[warp][e - half]) * sine;
        }
        __syncwarp();
        Cache* cache = warp == 1 ? k_cache : v_cache;
#pragma unroll
        for (u32 i = 0; i < STRIDED; i++) {
            const u32 e = lane + i * 32;
            if (e >= HEAD_DIM) continue;
            // As the cache will give it back.
            heads[warp][e] = warp ? from_cache(to_cache(turned[i])) : turned[i] * score_scale * LOG2E;
            if (warp && head % group == 0) cache[cache_at + (u64)position * HEAD_DIM + e] = to_cache(turned[i]);
        }
    }
    __syncthreads();

    f32 q[EACH], out[EACH] = {}, top = LOWEST, sum = 0.f;
#pragma unroll
    for (int i = 0; i < EACH; i++) q[i] = heads[0][first + i];
    auto scores = [&](auto key) {
        f32 score = 0.f;
#pragma unroll
        for (int i = 0; i < EACH; i++) score += q[i] * key(i);
#pragma unroll
        for (int o = LANES / 2; o; o >>= 1) score += __shfl_xor_sync(~0u, score, o);
        return score;
    };
    const f32 own = scores([&](int i) { return heads[1][first + i]; });
    if (warp == 0 && lane < LANES) {
        top = own, sum = 1.f;
#pragma unroll
        for (int i = 0; i < EACH; i++) out[i] = heads[2][first + i];
    }
    constexpr u32 ROUND = WARPS * POSITIONS, ROUNDS = 4;
#pragma unroll 1
    for (u32 p0 = warp * POSITIONS + lane / LANES; p0 - lane / LANES < position; p0 += ROUNDS * ROUND) {
        Raw k[ROUNDS], v[ROUNDS];
#pragma unroll
        for (u32 round = 0; round < ROUNDS; round++) {
            const u64 at = cache_at + (u64)min(p0 + round * ROUND, position - 1) * HEAD_DIM;
            k[round] = load_head(k_cache + at, first);
            v[round] = load_head(v_cache + at, first);
        }
#pragma unroll
        for (u32 round = 0; round < ROUNDS; round++) {
            const bool seen = p0 + round * ROUND < position;
            const f32 score = scores([&](int i) { return k[round][i]; });
            const f32 peak = seen ? fmaxf(top, score) : top;
            const f32 keep = exp2f(top - peak), weight = seen ? exp2f(score - peak) : 0.f;
            top = peak;
            sum = sum * keep + weight;
#pragma unroll
            for (int i = 0; i < EACH; i++) out[i] = out[i] * keep + weight * v[round][i];
        }
    }
    // Join the lanes that hold the same elements, then the warps.
    f32 peak = top;
#pragma unroll
    for (int o = 16; o >= LANES; o >>= 1) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, o));
    const f32 keep = exp2f(top - peak);
    sum *= keep;
#pragma unroll
    for (int o = 16; o >= LANES; o >>= 1) sum += __shfl_xor_sync(~0u, sum, o);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        f32 v = out[i] * keep;
#pragma unroll
        for (int o = 16; o >= LANES; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
        if (lane < LANES) warp_out[warp][first + i] = v;
    }
    if (lane == 0) tops[warp] = peak, sums[warp] = sum;
    __syncthreads();
    peak = tops[lane % WARPS];
#pragma unroll
    for (int o = WARPS / 2; o; o >>= 1) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, o));
    for (u32 e = threadIdx.x; e < HEAD_DIM; e += blockDim.x) {
        f32 total = 0.f, v = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const f32 share = exp2f(tops[w] - peak);
            total += sums[w] * share;
            v += warp_out[w][e] * share;
        }
        v /= total;
        y[head * HEAD_DIM + e] = gated ? v * sigmoid(qkv[head * params.q_stride + HEAD_DIM + e]) : v;
    }
}
#endif

KERNEL BOUNDS(WARPS * 32)
attention_split(const f32* qkv, const Cache* k_cache, const Cache* v_cache, const u32* rows, f32* partial, f32* sums,
                AttentionParams params) {
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, first = lane % LANES * EACH;
    const u32 r = blockIdx.y, slot = rows[r * 2], count = rows[r * 2 + 1] + 1;
    const u32 head = blockIdx.x * GROUP, kv = head / (params.heads / params.kv_heads);
    const u32 each = stretch(count), begin = blockIdx.z * each, end = min(begin + each, count);
    if (begin >= count) return;
    const u64 cache_at = ((u64)slot * params.kv_heads + kv) * params.context * HEAD_DIM;
    const f32* query = qkv + (u64)r * params.stride + head * params.q_stride;

    f32 q[GROUP][EACH], out[GROUP][EACH] = {}, top[GROUP], sum[GROUP];
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        top[g] = LOWEST;
        sum[g] = 0.f;
        load_query(q[g], query + g * params.q_stride, first);
#pragma unroll
        for (int i = 0; i < EACH; i++) q[g][i] *= params.scale * LOG2E;
    }
    constexpr u32 ROUND = WARPS * POSITIONS, ROUNDS = 2;
    for (u32 p0 = begin; p0 < end; p0 += ROUNDS * ROUND) {
        Raw k[ROUNDS], v[ROUNDS];
#pragma unroll
        for (u32 round = 0; round < ROUNDS; round++) {
            const u32 position = p0 + round * ROUND + warp * POSITIONS + lane / LANES;
            const u64 at = cache_at + (u64)min(position, end - 1) * HEAD_DIM;
            k[round] = load_head(k_cache + at, first);
            v[round] = load_head(v_cache + at, first);
        }
#pragma unroll
        for (u32 round = 0; round < ROUNDS; round++) {
            const bool seen = p0 + round * ROUND + warp * POSITIONS + lane / LANES < end;
#pragma unroll
            for (int g = 0; g < GROUP; g++) {
                f32 score = 0.f;
#pragma unroll
                for (int i = 0; i < EACH; i++) score += q[g][i] * k[round][i];
#pragma unroll
                for (int o = LANES / 2; o; o >>= 1) score += __shfl_xor_sync(~0u, score, o);
                const f32 peak = seen ? fmaxf(top[g], score) : top[g];
                const f32 keep = exp2f(top[g] - peak), weight = seen ? exp2f(score - peak) : 0.f;
                top[g] = peak;
                sum[g] = sum[g] * keep + weight;
#pragma unroll
                for (int i = 0; i < EACH; i++) out[g][i] = out[g][i] * keep + weight * v[round][i];
            }
        }
    }
    // Join the lanes that hold the same elements, then the warps.
    __shared__ f32 warp_top[WARPS][GROUP], warp_sums[WARPS][GROUP];
    f32 (*warp_out)[GROUP][LANES * EACH] = reinterpret_cast<f32 (*)[GROUP][LANES * EACH]>(phase_shared()); // a warp's
#pragma unroll
    for (int g = 0; g < GROUP; g++) {
        f32 peak = top[g];
#pragma unroll
        for (int o = 16; o >= LANES; o >>= 1) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, o));
        const f32 keep = exp2f(top[g] - peak);
        sum[g] *= keep;
#pragma unroll
        for (int o = 16; o >= LANES; o >>= 1) sum[g] += __shfl_xor_sync(~0u, sum[g], o);
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            f32 v = out[g][i] * keep;
#pragma unroll
            for (int o = 16; o >= LANES; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
            if (lane < LANES) warp_out[warp][g][first + i] = v;
        }
        if (lane == 0) warp_top[warp][g] = peak, warp_sums[warp][g] = sum[g];
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < GROUP * HEAD_DIM; i += blockDim.x) {
        const u32 g = i / HEAD_DIM, e = i % HEAD_DIM;
        f32 peak = warp_top[0][g];
#pragma unroll
        for (int w = 1; w < WARPS; w++) peak = fmaxf(peak, warp_top[w][g]);
        f32 total = 0.f, v = 0.f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const f32 keep = exp2f(warp_top[w][g] - peak);
            total += warp_sums[w][g] * keep;
            v += warp_out[w][g][e] * keep;
        }
        const u64 at = ((u64)r * params.heads + head + g) * SPLITS + blockIdx.z;
        partial[at * HEAD_DIM + e] = v;
        if (e == 0) sums[at * 2] = peak, sums[at * 2 + 1] = total;
    }
}

// Grid: (outputs / 512 or the rotation's block, rows). One warp per head joins the stretches' weights.
constexpr int UNIT = 512, UNIT_HEADS = (UNIT - 1) / HEAD_DIM + 2;

KERNEL attention_combine(const f32* qkv, const f32* partial, const f32* sums, const u32* rows, f32* y,
                         AttentionParams params, Packed packed = {}) {
    __shared__ __align__(16) f32 stage[UNIT / 8 * 9];
    __shared__ f32 weights[UNIT_HEADS][SPLITS];
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, r = blockIdx.y;
    const u32 size = params.heads * HEAD_DIM, unit = params.rotate ? params.rotate : UNIT;
    const u32 first = blockIdx.x * unit, end = min(first + unit, size);
    if (r >= params.rows) return packed.store_all(r, first, end - first, [](u32) { return 0.f; });
    const u32 count = rows[r * 2 + 1] + 1, each = stretch(count), used = (count + each - 1) / each;
    const u32 head0 = first / HEAD_DIM, heads = (end - 1) / HEAD_DIM - head0 + 1;
    for (u32 h = warp; h < heads; h += blockDim.x >> 5) {
        const f32* at = sums + ((u64)r * params.heads + head0 + h) * SPLITS * 2;
        f32 peak = LOWEST, total = 0.f;
        for (u32 s = lane; s < used; s += 32) peak = fmaxf(peak, at[s * 2]);
#pragma unroll
        for (int o = 16; o; o >>= 1) peak = fmaxf(peak, __shfl_xor_sync(~0u, peak, o));
        for (u32 s = lane; s < used; s += 32) total += at[s * 2 + 1] * exp2f(at[s * 2] - peak);
        total = warp_sum(total);
        for (u32 s = lane; s < used; s += 32) weights[h][s] = exp2f(at[s * 2] - peak) / total;
    }
    __syncthreads();
    f32* out = y + (u64)r * size;
    for (u32 i = first + threadIdx.x; i < end; i += blockDim.x) {
        const u32 h = i / HEAD_DIM, e = i % HEAD_DIM;
        const f32* at = partial + ((u64)r * params.heads + h) * SPLITS * HEAD_DIM + e;
        f32 v = 0.f;
        for (u32 first_of_4 = 0; first_of_4 < used; first_of_4 += 4) {
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                const u32 s = min(first_of_4 + k, used - 1);
                v += (first_of_4 + k < used ? weights[h - head0][s] : 0.f) * at[(u64)s * HEAD_DIM];
            }
        }
        if (params.gated) v *= sigmoid(qkv[(u64)r * params.stride + h * params.q_stride + HEAD_DIM + e]);
        stage[padded(i - first)] = v;
        if (!params.rotate) out[i] = v;
    }
    if (params.rotate) {
        rotate_shared<false>(stage, first, end - first, params.rotate);
        for (u32 i = first + threadIdx.x; i < end; i += blockDim.x) out[i] = stage[padded(i - first)];
    } else {
        __syncthreads();
    }
    if (packed.at) packed.store_all(r, first, end - first, [&](u32 i) { return stage[padded(i)]; });
}

#if !defined(STEP) && defined(CACHE_F16) && HEAD_DIM % 16 == 0 && HEAD_DIM <= 256
// Many rows of a segment (prefill): 64 rows of one head against tiles of positions, both products on the tensor cores,
// softmax online in f32. A warp has 16 rows; q, k and v tiles stand in shared memory, rows padded by 16 bytes so that
// ldmatrix meets no bank twice. Grid: (row tiles, heads, segments). The output is not rotated.
constexpr int TILE_Q = 64, TILE_P = HEAD_DIM <= 128 ? 64 : 32;
constexpr int PITCH = HEAD_DIM + 8; // halves

__device__ __forceinline__ void ldmatrix(u32 (&r)[4], const u16* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((u32)__cvta_generic_to_shared(at)));
}

__device__ __forceinline__ void ldmatrix_transposed(u32 (&r)[4], const u16* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((u32)__cvta_generic_to_shared(at)));
}

KERNEL BOUNDS(128)
attention_rows(const f32* qkv, const u16* k_cache, const u16* v_cache, const u32* segments, f32* y,
               AttentionParams params) {
    u16 *q_tile = reinterpret_cast<u16*>(phase_shared()), *k_tile = q_tile + TILE_Q * PITCH, *v_tile = k_tile + TILE_P * PITCH;
    release_next();
    wait_inputs();
    const u32* segment = segments + blockIdx.z * 4;
    const u32 slot = segment[0], first = segment[1], rows = segment[2], before = segment[3];
    // The longest rows first.
    const u32 r0 = (gridDim.x - 1 - blockIdx.x) * TILE_Q, head = blockIdx.y;
    if (r0 >= rows) return;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const u32 kv = head / (params.heads / params.kv_heads);
    const u64 cache_at = ((u64)slot * params.kv_heads + kv) * params.context * HEAD_DIM;

    for (u32 i = threadIdx.x; i < TILE_Q * HEAD_DIM / 2; i += blockDim.x) {
        const u32 r = i / (HEAD_DIM / 2), e = i % (HEAD_DIM / 2) * 2;
        const f32* q = qkv + (u64)(first + min(r0 + r, rows - 1)) * params.stride + head * params.q_stride + e;
        const f32 scale = params.scale * LOG2E;
        *reinterpret_cast<u32*>(q_tile + r * PITCH + e) = pack_f16(q[0] * scale, q[1] * scale);
    }
    f32 out[HEAD_DIM / 8][4] = {}, top[2] = {LOWEST, LOWEST}, sum[2] = {0.f, 0.f};
    const u32 count = before + min(r0 + TILE_Q, rows); // positions that the tile's last row sees
    const u32 mine = before + r0 + warp * 16 + g;      // position of this lane's upper row
    for (u32 p0 = 0; p0 < count; p0 += TILE_P) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < TILE_P * HEAD_DIM / 8; i += blockDim.x) {
            const u32 p = i / (HEAD_DIM / 8), e = i % (HEAD_DIM / 8) * 8;
            const u64 at = cache_at + (u64)min(p0 + p, count - 1) * HEAD_DIM + e;
            *reinterpret_cast<uint4*>(k_tile + p * PITCH + e) = *reinterpret_cast<const uint4*>(k_cache + at);
            *reinterpret_cast<uint4*>(v_tile + p * PITCH + e) = *reinterpret_cast<const uint4*>(v_cache + at);
        }
        __syncthreads();
        f32 score[TILE_P / 8][4] = {};
#pragma unroll
        for (int e = 0; e < HEAD_DIM; e += 16) {
            u32 a[4];
            ldmatrix(a, q_tile + (warp * 16 + lane % 16) * PITCH + e + lane / 16 * 8);
#pragma unroll
            for (int n = 0; n < TILE_P / 8; n += 2) {
                u32 b[4];
                ldmatrix(b, k_tile + (n * 8 + lane / 16 * 8 + lane % 8) * PITCH + e + lane / 8 % 2 * 8);
                mma(score[n], a[0], a[1], a[2], a[3], b[0], b[1]);
                mma(score[n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
            }
        }
        f32 peak[2] = {top[0], top[1]};
#pragma unroll
        for (int n = 0; n < TILE_P / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 p = p0 + n * 8 + 2 * t + i % 2;
                if (p > mine + i / 2 * 8) score[n][i] = LOWEST;
                peak[i / 2] = fmaxf(peak[i / 2], score[n][i]);
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            peak[h] = fmaxf(peak[h], __shfl_xor_sync(~0u, peak[h], 1));
            peak[h] = fmaxf(peak[h], __shfl_xor_sync(~0u, peak[h], 2));
            const f32 keep = exp2f(top[h] - peak[h]);
            top[h] = peak[h];
            sum[h] *= keep;
#pragma unroll
            for (int n = 0; n < HEAD_DIM / 8; n++) out[n][2 * h] *= keep, out[n][2 * h + 1] *= keep;
        }
#pragma unroll
        for (int n = 0; n < TILE_P / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                score[n][i] = exp2f(score[n][i] - top[i / 2]);
                sum[i / 2] += score[n][i];
            }
        }
#pragma unroll
        for (int n = 0; n < TILE_P / 8; n += 2) {
            const u32 a0 = pack_f16(score[n][0], score[n][1]), a1 = pack_f16(score[n][2], score[n][3]);
            const u32 a2 = pack_f16(score[n + 1][0], score[n + 1][1]), a3 = pack_f16(score[n + 1][2], score[n + 1][3]);
#pragma unroll
            for (int e = 0; e < HEAD_DIM / 8; e += 2) {
                u32 b[4];
                ldmatrix_transposed(b, v_tile + (n * 8 + lane % 16) * PITCH + e * 8 + lane / 16 * 8);
                mma(out[e], a0, a1, a2, a3, b[0], b[1]);
                mma(out[e + 1], a0, a1, a2, a3, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
        const u32 r = r0 + warp * 16 + g + h * 8;
        if (r >= rows) continue;
        const f32* gate = qkv + (u64)(first + r) * params.stride + head * params.q_stride + HEAD_DIM;
        f32* to = y + ((u64)(first + r) * params.heads + head) * HEAD_DIM;
#pragma unroll
        for (int n = 0; n < HEAD_DIM / 8; n++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const u32 e = n * 8 + 2 * t + i;
                const f32 v = out[n][2 * h + i] / sum[h];
                to[e] = params.gated ? v * sigmoid(gate[e]) : v;
            }
        }
    }
}
#endif
