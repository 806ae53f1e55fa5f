// Causal attention of few rows (decode), each over its slot's cache, split over the positions.
//
// attention_split: a block takes one row, GROUP query heads that share a key/value head, and one stretch of positions. A
// position's head is 8 elements a lane; a warp works on 32 / LANES positions at once, loading two rounds of them together,
// every lane keeping its own running maximum, sum and output for its positions, so that a position costs log2 LANES
// shuffles per head and nothing else is exchanged until the end. How many of the SPLITS work is decided by the row's
// position on the device: one recorded launch serves every position.
// attention_combine: joins the stretches, multiplies by the gate, rotates. A block a rotation block.
// Constants: HEAD_DIM, GROUP, SPLITS, CACHE_F16.

constexpr int WARPS = 16;

// Positions per stretch for a row with `count` positions to see.
__device__ __forceinline__ u32 stretch(u32 count) {
    const u32 even = (count + SPLITS - 1) / SPLITS;
    constexpr u32 ROUND = WARPS * POSITIONS;
    return max((even + ROUND - 1) / ROUND * ROUND, 2 * ROUND);
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
