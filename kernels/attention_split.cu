// Causal attention of few rows (decode), each over its slot's cache, split over the positions (flash-decoding).
//
// attention_split: a block takes one row, GROUP query heads that share a key/value head, and one KV split, whose positions
// its warps share (attention_tiles.cuh, attention_lanes.cuh). Grid: (heads / GROUP, rows, SPLITS). The row's position, read
// on the device, decides how many of the SPLITS work: one recorded launch serves every position.
// attention_combine: joins the splits, multiplies by the gate, rotates. A block a rotation block.
// Bound: latency with few positions, memory with many. H200, llama3-8b: 7.9 / 12.9 us at position 512 / 4,096, both kernels.
// Constants: HEAD_DIM, GROUP, SPLITS, CACHE_F16, SPLIT_SHARED.

constexpr u32 WARPS = HEAD_DIM <= 128 ? 16 : 8;

// Positions of a KV split for a row that sees `count` positions.
__device__ __forceinline__ u32 split_of(u32 count) {
    const u32 even = (count + SPLITS - 1) / SPLITS;
    constexpr u32 ROUND = Share<WARPS>::ROUND;
    return max((even + ROUND - 1) / ROUND * ROUND, Share<WARPS>::AT_ONCE);
}

KERNEL BOUNDS(WARPS * 32)
attention_split(const f32* qkv, const Cache* k_cache, const Cache* v_cache, const u32* rows, f32* partial, f32* sums,
                AttentionParams params) {
    struct Block { Found<WARPS> found; Share<WARPS>::Queries queries; };
    static_assert(sizeof(Block) <= SPLIT_SHARED, "what the host gives a block");
    Block& block = *reinterpret_cast<Block*>(phase_shared());
    release_next();
    wait_inputs();
    const u32 r = blockIdx.y, slot = rows[r * 2], position = rows[r * 2 + 1], count = position + 1;
    const u32 head = blockIdx.x * GROUP, kv = head / (params.heads / params.kv_heads);
    const u32 seen = first_seen(params.window, position), each = split_of(count - seen);
    const u32 begin = seen + blockIdx.z * each, end = min(begin + each, count);
    if (begin >= count) return;
    const u64 cache_at = cache_row(params, slot, kv, 0, HEAD_DIM);
    const KvSplit split = {k_cache + cache_at, v_cache + cache_at, begin, end, end, nullptr, nullptr};
    Share<WARPS> share;
    share.start(split);
    const f32* query = qkv + (u64)r * params.stride + head * params.q_stride;
    for (u32 i = threadIdx.x; i < GROUP * DIM; i += blockDim.x) {
        const u32 h = i / DIM, e = i % DIM;
        block.queries.store(h, e, e < HEAD_DIM ? query[h * params.q_stride + e] * params.scale * LOG2E : 0.f);
    }
    __syncthreads();
    share.run(split, block.queries, GROUP);
    share.store(block.found, GROUP);
    __syncthreads();
    block.found.join(GROUP, [&](u32 h, u32 e, const Joined& all) {
        const u64 at = ((u64)r * params.heads + head + h) * SPLITS + blockIdx.z;
        partial[at * HEAD_DIM + e] = all.value;
        if (e == 0) sums[at * 2] = all.peak, sums[at * 2 + 1] = all.total;
    });
}

// Grid: (outputs / 512 or the rotation's block size, rows). One warp a head joins the splits' weights.
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
    const u32 position = rows[r * 2 + 1], count = position + 1 - first_seen(params.window, position);
    const u32 each = split_of(count), used = (count + each - 1) / each;
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
