// Normalises query and key heads, turns them by their position, and writes keys and values to the cache.
// One block a head. Grid: (heads + 2 kv_heads, rows).
KERNEL rope_cache(f32* qkv, const f32* q_norm, const f32* k_norm, const f32* inv_freq, const u32* rows, void* k_cache,
                  void* v_cache, RopeCacheParams params) {
    __shared__ f32 head[HEAD_DIM_MAX];
    release_next();
    wait_inputs();
    const u32 i = threadIdx.x, r = blockIdx.y, dim = params.head_dim;
    const u32 slot = rows[r * 2], position = rows[r * 2 + 1];
    f32* row = qkv + (u64)r * params.stride;
    const bool query = blockIdx.x < params.heads;
    const bool key = !query && blockIdx.x < params.heads + params.kv_heads;
    const u32 kv = (blockIdx.x - params.heads) % params.kv_heads;
    f32* x = query ? row + blockIdx.x * params.q_stride
                   : row + (key ? params.k_offset : params.v_offset) + kv * dim;
    f32 v = i < dim ? x[i] : 0.f;
    if (query || key) {
        const f32* norm = query ? q_norm : k_norm;
        if (norm) {
            const f32 scale = rsqrtf(block_sum(v * v) / dim + params.eps);
            if (i < dim) v = (norm[i] + params.weight_offset) * (v * scale);
        }
        if (i < dim) head[i] = v;
        __syncthreads();
        const u32 half = params.rotary_dim / 2;
        if (i < params.rotary_dim) {
            f32 sine, cosine;
            sine_cosine((f32)position * inv_freq[i % half], sine, cosine);
            v = i < half ? head[i] * cosine - head[i + half] * sine : head[i] * cosine + head[i - half] * sine;
        }
    }
    if (i >= dim) return;
    if (query) {
        x[i] = v;
    } else {
        const u64 at = (((u64)slot * params.kv_heads + kv) * params.context + position) * dim + i;
        static_cast<Cache*>(key ? k_cache : v_cache)[at] = to_cache(v);
    }
}
