// Attention of one row as a phase of the persistent decode kernel (persistent.cu): from the raw outputs of the q, k, v
// projections, norm and RoPE included, to the attention's output. The output is not rotated (Hadamard), but multiplied by
// the rotation's signs where the next matrix's kernel does the rest.
//
// A block takes some query heads that share a key/value head, and one KV split (a range of positions). With few positions
// there is one split and a block takes one head; with many, GROUP heads, and the last block to finish joins the splits of
// its heads. A block's warps share its positions (attention_tiles.cuh, attention_lanes.cuh) and synchronize once at the end.
// The row's own key is prepared by every block that needs it and written by one. What does not depend on the previous phase
// is loaded before the grid barrier: the first positions of the cache, the norms' weights, RoPE's sines.
//
// Bound: up to some 300 positions a chain of latencies and what one multiprocessor can load; beyond, memory at 4.4 TB/s plus
// 6 us a phase. H200, llama3-8b (32 / 8 heads of 128): 6.4, 11.4 and 23.0 us after 190, 4,200 and 16,500 positions.
// Versions: docs/log/cuda-decode.md.
//
// Constants: HEAD_DIM, GROUP, SPLITS, CACHE_F16, STEP_SHARED.
constexpr u32 WARPS = PERSISTENT_THREADS / 32;
constexpr u32 LEAST = 64; // positions of a KV split, at least

// The arguments, as they lie in a phase of the persistent kernel.
using Call = AttentionStepCall;

// A block's shared memory.
struct Block {
    Found<WARPS> found;
    typename Share<WARPS>::Queries queries; // multiplied by score_scale * log2(e)
    __align__(16) Cache own[2][DIM];        // the row's own key and value
};

static_assert(sizeof(Block) <= STEP_SHARED, "what the host gives a block");

// One head of the row, prepared by one warp: a query (the first `count` warps), the key or the value. A lane has PAIRS pairs
// of elements that RoPE rotates against each other; pairs beyond rotary_dim, and the value's, keep their elements.
struct Head {
    static constexpr u32 PAIRS = DIM / 64;
    const u32 lane = threadIdx.x & 31, task = threadIdx.x >> 5, count;
    const bool query = task < count, key = task == count;
    bool normed;
    const f32* x;
    u32 elements[PAIRS][2];
    f32 weights[PAIRS][2], sines[PAIRS], cosines[PAIRS];

    // Loads and computes what does not depend on the previous phase.
    __device__ __forceinline__ Head(const Call& call, u32 head, u32 kv) : count(call.count) {
        const RopeCacheParams& params = call.params;
        const u32 half = query || key ? params.rotary_dim / 2 : 0;
        x = call.qkv + (query ? (head + task) * params.q_stride : (key ? params.k_offset : params.v_offset) + kv * HEAD_DIM);
        const f32* norm = query ? call.q_norm : key ? call.k_norm : nullptr;
        normed = norm;
#pragma unroll
        for (u32 i = 0; i < PAIRS; i++) {
            const u32 j = lane + 32 * i;
            const bool turned = j < half;
            elements[i][0] = turned ? j : j + half;
            elements[i][1] = elements[i][0] + (turned ? half : DIM / 2 - half);
            const f32 frequency = call.inv_freq[turned ? j : 0];
            sine_cosine(turned ? (f32)row_position * frequency : 0.f, sines[i], cosines[i]);
            if (turned) sines[i] *= params.amplitude, cosines[i] *= params.amplitude;
            weights[i][0] = weights[i][1] = 1.f;
        }
        if (!normed) return;
#pragma unroll
        for (u32 i = 0; i < PAIRS * 2; i++) {
            weights[i / 2][i % 2] = norm[min(elements[i / 2][i % 2], HEAD_DIM - 1)] + params.weight_offset;
        }
    }

    // Normalises and rotates the head (RoPE), and writes key and value to the cache at `cache_at` if `writes`.
    __device__ __forceinline__ void prepare(Block& block, const Call& call, u64 cache_at, bool writes) const {
        if (task >= count + 2) return;
        f32 v[PAIRS][2], squares = 0.f;
        f32 scale = query ? call.score_scale * LOG2E * query_scale(call.params, row_position) : 1.f;
#pragma unroll
        for (u32 i = 0; i < PAIRS * 2; i++) {
            const u32 e = elements[i / 2][i % 2];
            v[i / 2][i % 2] = HEAD_DIM == DIM || e < HEAD_DIM ? x[e] : 0.f;
        }
        if (normed) {
#pragma unroll
            for (u32 i = 0; i < PAIRS * 2; i++) squares += v[i / 2][i % 2] * v[i / 2][i % 2];
            scale *= rsqrtf(warp_sum(squares) / HEAD_DIM + call.params.eps);
        }
#pragma unroll
        for (u32 i = 0; i < PAIRS; i++) {
            const f32 a = v[i][0] * (weights[i][0] * scale), b = v[i][1] * (weights[i][1] * scale);
            v[i][0] = a * cosines[i] - b * sines[i];
            v[i][1] = b * cosines[i] + a * sines[i];
        }
        if (query) {
#pragma unroll
            for (u32 i = 0; i < PAIRS * 2; i++) block.queries.store(task, elements[i / 2][i % 2], v[i / 2][i % 2]);
            return;
        }
        Cache *own = block.own[key ? 0 : 1], *cache = (Cache*)(key ? call.k_cache : call.v_cache) + cache_at;
#pragma unroll
        for (u32 i = 0; i < PAIRS * 2; i++) {
            const u32 e = elements[i / 2][i % 2];
            const Cache c = to_cache(v[i / 2][i % 2]);
            own[e] = c;
            if (writes && (HEAD_DIM == DIM || e < HEAD_DIM)) cache[e] = c;
        }
    }
};

// Finished splits of each group of heads; 0 between phases. The grid has several splits only where the groups number at most
// half the multiprocessors.
__device__ u32 splits_done[256];

// Counts this split as finished; whether it is the group's last, so that all the others' results can be read.
__device__ __forceinline__ bool comes_last(u32 group, u32 splits) {
    __shared__ u32 before;
    __syncthreads();
    if (threadIdx.x == 0) {
        u32 done;
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;" : "=r"(done) : "l"(splits_done + group) : "memory");
        before = done;
        if (done + 1 == splits) splits_done[group] = 0;
    }
    __syncthreads();
    return before + 1 == splits;
}

// Grid: (blocks that share a key/value head, key/value heads, KV splits at most).
KERNEL attention_step(const Call& call) {
    Block& block = *reinterpret_cast<Block*>(phase_shared());
    const RopeCacheParams& params = call.params;
    const u32 count = call.count, kv = blockIdx.y, group = kv * gridDim.x + blockIdx.x, head = group * count;
    const u32 positions = row_position + 1, first = first_seen(call.window, row_position), seen = positions - first;
    const u32 each = gridDim.z == 1 ? seen : max((seen + SPLITS - 1) / SPLITS, LEAST);
    const u32 begin = min(first + blockIdx.z * each, positions), end = min(begin + each, positions);
    const u64 cache_at = cache_row(params, row_slot, kv, 0, HEAD_DIM);
    const KvSplit split = {(const Cache*)call.k_cache + cache_at, (const Cache*)call.v_cache + cache_at, begin, min(end, row_position), end,
                             block.own[0], block.own[1]};
    Share<WARPS> share;
    share.start(split);
    const Head mine(call, head, kv);
    const u32 splits = gridDim.z == 1 ? 1 : (seen + each - 1) / each;
    wait_inputs();
    if (begin >= end) return;
    mine.prepare(block, call, cache_at + (u64)row_position * HEAD_DIM, blockIdx.x == 0 && blockIdx.z == 0);
    __syncthreads();
    share.run(split, block.queries, count);
    share.store(block.found, count);
    __syncthreads();
    auto store = [&](u32 h, u32 e, const Joined& all) {
        const u32 at = (head + h) * HEAD_DIM + e;
        const f32 v = __fdividef(all.value, call.with_signs ? all.total * rotation_sign(at) : all.total);
        call.y[at] = call.gated ? v * sigmoid(call.qkv[(head + h) * params.q_stride + HEAD_DIM + e]) : v;
    };
    // The splits' results: `partial` [heads, SPLITS, DIM] and `sums` [heads, SPLITS].
    auto place_of = [&](u32 h, u32 split) { return (head + h) * SPLITS + split; };
    float2* scores = reinterpret_cast<float2*>(call.sums);
    block.found.join(count, [&](u32 h, u32 e, const Joined& all) {
        if (splits == 1) return store(h, e, all);
        const u32 at = place_of(h, blockIdx.z);
        call.partial[at * DIM + e] = all.value;
        if (e == 0) scores[at] = make_float2(all.peak, all.total);
    });
    if (splits == 1 || !comes_last(group, splits)) return;
    constexpr u32 AT_ONCE = SPLITS < 32 ? (SPLITS + 3) / 4 : 8;
    join_all<WARPS, AT_ONCE>(
        count, splits, [&](u32 i, u32 h) { return __ldcg(scores + place_of(h, i)); },
        [&](u32 i, u32 h, u32 e) { return __ldcg(reinterpret_cast<const float4*>(call.partial + place_of(h, i) * DIM + e)); },
        store);
}
