// Normalises query and key heads, applies RoPE to them, and writes keys and values to the cache.
// Grid: (blocks of the heads, rows). ROPE_LANES threads a head: a whole block for few rows, in short code, because its
// instructions are cold every time; a warp for many rows.
// Bound: latency for one row, 1.2 us on an H200; memory for 512 rows of 48 heads of 128, 13.8 us. Versions:
// docs/log/cuda-prefill.md.

constexpr u32 LANES = ROPE_LANES, HEADS = 128 / LANES; // of a block
constexpr u32 AT_ONCE = LANES == 32 ? 4 : 1;

KERNEL rope_cache(f32* qkv, const f32* q_norm, const f32* k_norm, const f32* inv_freq, const u32* rows, void* k_cache,
                  void* v_cache, RopeCacheParams params) {
    __shared__ f32 stages[HEADS][MAX_HEAD_DIM];
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x % LANES, own = threadIdx.x / LANES, head = blockIdx.x * HEADS + own, r = blockIdx.y;
    const u32 slot = rows[r * 2], position = rows[r * 2 + 1], dim = params.head_dim;
    if (head >= params.heads + 2 * params.kv_heads) return;
    f32* row = qkv + (u64)r * params.stride;
    const bool query = head < params.heads, key = !query && head < params.heads + params.kv_heads;
    const u32 kv = (head - params.heads) % params.kv_heads;
    f32* x = query ? row + head * params.q_stride : row + (key ? params.k_offset : params.v_offset) + kv * dim;
    f32 *stage = stages[own], sum = 0.f;
#pragma unroll AT_ONCE
    for (u32 i = lane; i < dim; i += LANES) {
        const f32 v = x[i];
        stage[i] = v, sum += v * v;
    }
    const f32* norm = query ? q_norm : key ? k_norm : nullptr;
    f32 scale = 1.f;
    if constexpr (LANES == 32) {
        if (norm) scale = rsqrtf(warp_sum(sum) / dim + params.eps);
        __syncwarp();
    } else {
        if (norm) scale = rsqrtf(block_sum(sum) / dim + params.eps);
        __syncthreads();
    }
    auto at = [&](u32 i) { return norm ? (norm[i] + params.weight_offset) * (stage[i] * scale) : stage[i]; };
    const u64 cached = cache_row(params, slot, kv, position, dim);
    const f32 grown = query_scale(params, position);
    auto put = [&](u32 i, f32 v) {
        if (query) x[i] = v * grown;
        else static_cast<Cache*>(key ? k_cache : v_cache)[cached + i] = to_cache(v);
    };
    const u32 turned = query || key ? params.rotary_dim : 0, half = turned / 2;
#pragma unroll AT_ONCE
    for (u32 i = lane; i < dim; i += LANES) {
        f32 v = at(i);
        if (i < turned) {
            f32 sine, cosine;
            sine_cosine((f32)position * inv_freq[i % half], sine, cosine);
            sine *= params.amplitude, cosine *= params.amplitude;
            v = i < half ? v * cosine - at(i + half) * sine : v * cosine + at(i - half) * sine;
        }
        put(i, v);
    }
}
