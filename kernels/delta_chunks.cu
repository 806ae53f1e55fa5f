// The gated delta rule by chunks of 32 rows (formulas: src/backend/cpu/delta_rule.rs), in two launches, for prompts.
//
// delta_prepare: a block a chunk and key head. Computes what does not depend on the state: normalised keys and queries, and
// for each value head T = (I + A)^-1 diag(beta) and P = Q K^T * D. With W = T (V - exp(G) K S) a chunk then is
// Y = exp(G) Q S + P W and S' = exp(G_C) S + K^T diag(exp(G_C - G)) W.
//
// delta_chunks: goes through a segment's chunks in order. A pair of warps holds 16 columns of S, each warp half of the keys,
// transposed, in tensor-core accumulators: an accumulator's layout is an operand's in the next product, so S never leaves
// registers. Both warps multiply their part of S by keys and queries; one then computes W, the other Y. The right operands
// are copied to shared memory by cp.async, some stages ahead, in the order of use; the barrier of a stage also serves the
// exchange of partial sums and W.
//
// Numbers are pairs of bf16 (high, low): 16 bits of precision, the range of f32; a product is three mma. With elements of
// order 1, S is off by 1e-5 against f64, where f32 row by row is off by 2e-6.
//
// Bound: latency, with one warp on each of a multiprocessor's four schedulers. H200, 16 key heads and 32 value heads of 128:
// 55 / 190 us by 512 / 2,048 rows, of which delta_prepare 12 / 36. Versions: docs/log/cuda-prefill.md.

constexpr int CHUNK = DELTA_CHUNK;
constexpr int KEYS = (KEY_DIM + 63) / 64 * 64, KEY_STEPS = KEYS / 16;
constexpr int TILE = 32;                                          // uint4s of a tile of 16 x 8 numbers
constexpr int READ_TILES = KEY_STEPS * 8, WRITE_TILES = KEYS / 4; // keys and queries that read S; keys that update it
constexpr int KEY_TILES = READ_TILES + WRITE_TILES, MIX_TILES = DELTA_MIX_TILES;
constexpr int STAGE_TILES = DELTA_STAGE_TILES, READ_STAGES = READ_TILES / STAGE_TILES, STAGES = READ_STAGES + 2;

// Two numbers as bf16 pairs: high parts and low parts.
struct Pair { u32 high, low; };

__device__ __forceinline__ u32 pack_bf16(f32 low, f32 high) {
    u32 d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

__device__ __forceinline__ Pair split(f32 a, f32 b) {
    Pair p;
    p.high = pack_bf16(a, b);
    p.low = pack_bf16(a - __uint_as_float(p.high << 16), b - __uint_as_float(p.high & 0xffff0000u));
    return p;
}

__device__ __forceinline__ void mma_bf16(f32 (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The left operand (A) of mma, 16 x 16 numbers.
struct Left {
    Pair at[4];

    // From two neighbouring accumulator tiles.
    __device__ __forceinline__ Left(const f32 (&a)[4], const f32 (&b)[4])
        : at{split(a[0], a[1]), split(a[2], a[3]), split(b[0], b[1]), split(b[2], b[3])} {}
    __device__ __forceinline__ Left(Pair a, Pair b, Pair c, Pair d) : at{a, b, c, d} {}
};

// d[FIRST ..] += a b for COUNT tiles b of 16 x 8 numbers (high words, low words). The three mma of an accumulator are far
// apart, since each waits for the one before.
template <int COUNT, int FIRST = 0, int N>
__device__ __forceinline__ void multiply(f32 (&d)[N][4], const Left& a, const uint4 (&b)[COUNT]) {
#pragma unroll
    for (int n = 0; n < COUNT; n++)
        mma_bf16(d[FIRST + n], a.at[0].low, a.at[1].low, a.at[2].low, a.at[3].low, b[n].x, b[n].y);
#pragma unroll
    for (int n = 0; n < COUNT; n++)
        mma_bf16(d[FIRST + n], a.at[0].high, a.at[1].high, a.at[2].high, a.at[3].high, b[n].z, b[n].w);
#pragma unroll
    for (int n = 0; n < COUNT; n++)
        mma_bf16(d[FIRST + n], a.at[0].high, a.at[1].high, a.at[2].high, a.at[3].high, b[n].x, b[n].y);
}

// The number of chunks in the segments before this one.
__device__ __forceinline__ u32 chunks_before(const u32* segments, u32 segment) {
    u32 chunks = 0;
    for (u32 s = 0; s < segment; s++) chunks += (segments[s * 4 + 2] + CHUNK - 1) / CHUNK;
    return chunks;
}

constexpr int PITCH = KEYS + 8;      // of a row of keys or queries, padded against bank conflicts
constexpr int MIX_PITCH = CHUNK + 4; // of a row of A
constexpr int HEADS = 4;             // value heads at a time, a warp each

// Grid: (key_heads, chunks of a segment, segments).
KERNEL BOUNDS(32 * HEADS) delta_prepare(const f32* qkv, const f32* proj, const f32* a_log, const f32* dt_bias,
                                        const u32* segments, uint4* keys_out, uint4* mixes_out, f32* decays,
                                        DeltaRuleParams params) {
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const u32 key_head = blockIdx.x, group = params.value_heads / params.key_heads;
    const u32* segment = segments + blockIdx.z * 4;
    if (blockIdx.y * CHUNK >= segment[2]) return;
    const u32 first = segment[1] + blockIdx.y * CHUNK, rows = min((u32)CHUNK, segment[2] - blockIdx.y * CHUNK);
    const u32 chunk = chunks_before(segments, blockIdx.z) + blockIdx.y;
    const u32 keys = params.key_heads * KEY_DIM, width = 2 * keys + params.value_heads * params.value_dim;

    // Keys and queries [key or query][high or low][row][key]; reused for A of each head.
    __shared__ __align__(16) char memory[2 * 2 * CHUNK * PITCH * 2];
    u16(*const rows_of)[2][CHUNK][PITCH] = reinterpret_cast<u16(*)[2][CHUNK][PITCH]>(memory);
    f32(*const mix)[CHUNK][MIX_PITCH] = reinterpret_cast<f32(*)[CHUNK][MIX_PITCH]>(memory);
    static_assert(sizeof(memory) >= HEADS * CHUNK * MIX_PITCH * 4, "A of each head");
    __shared__ f32 sums[HEADS][CHUNK], betas[HEADS][CHUNK]; // G and beta

    // A warp loads its 16 rows of keys or queries at once.
    constexpr int ROWS = 2 * CHUNK / HEADS, EACH = KEYS / 32;
    const u32 which = warp / 2, top = warp % 2 * 16; // keys or queries, and the first row
    const f32* from = qkv + (u64)first * width + (which ? 0 : keys) + key_head * KEY_DIM;
    f32 v[ROWS][EACH];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            const u32 key = n * 32 + lane;
            v[r][n] = top + r < rows && key < KEY_DIM ? from[(u64)(top + r) * width + key] : 0.f;
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        f32 squares = 0.f;
#pragma unroll
        for (int n = 0; n < EACH; n++) squares += v[r][n] * v[r][n];
        const f32 scale = rsqrtf(warp_sum(squares) + 1e-6f) * (which ? rsqrtf((f32)KEY_DIM) : 1.f);
#pragma unroll
        for (int n = 0; n < EACH; n++) {
            const u16 high = to_bf16(v[r][n] * scale);
            rows_of[which][0][top + r][n * 32 + lane] = high;
            rows_of[which][1][top + r][n * 32 + lane] = to_bf16(v[r][n] * scale - from_bf16(high));
        }
    }
    __syncthreads();

    // Two neighbouring numbers of a row.
    auto across = [&](u32 which, u32 half, u32 r, u32 key) {
        return *reinterpret_cast<const u32*>(&rows_of[which][half][r][key]);
    };
    // Two neighbouring numbers of a column.
    auto down = [&](u32 half, u32 r, u32 key) {
        return (u32)rows_of[0][half][r][key] | (u32)rows_of[0][half][r + 1][key] << 16;
    };
    uint4* out = keys_out + ((u64)chunk * params.key_heads + key_head) * KEY_TILES * TILE + lane;
#pragma unroll 4
    for (u32 tile = warp; tile < READ_TILES; tile += HEADS) {
        // A stage is [warp of the pair][k-step][keys, queries].
        const u32 step = tile / 16 % 2 * (KEY_STEPS / 2) + tile / 32 * 2 + tile / 8 % 2;
        const u32 which = tile / 4 % 2, r = tile % 4 * 8 + g, key = step * 16 + 2 * t;
        out[tile * TILE] = make_uint4(across(which, 0, r, key), across(which, 0, r, key + 8),
                                      across(which, 1, r, key), across(which, 1, r, key + 8));
    }
    out += READ_TILES * TILE;
#pragma unroll 4
    for (u32 tile = warp; tile < WRITE_TILES; tile += HEADS) {
        // The stage is [warp of the pair][16 rows][8 keys].
        const u32 key = (tile / KEY_STEPS / 2 * KEY_STEPS + tile % KEY_STEPS) * 8 + g, r = tile / KEY_STEPS % 2 * 16 + 2 * t;
        out[tile * TILE] = make_uint4(down(0, r, key), down(0, r + 8, key), down(1, r, key), down(1, r + 8, key));
    }

    // A warp's 16 rows of K K^T or Q K^T: lane (g, t) has rows g and g + 8, columns 2t and 2t + 1 of each tile.
    f32 products[4][4] = {};
#pragma unroll 2
    for (u32 key = 2 * t; key < KEYS; key += 16) {
        auto pair = [&](u32 r, u32 key) { return Pair{across(which, 0, r, key), across(which, 1, r, key)}; };
        const Left a(pair(top + g, key), pair(top + g + 8, key), pair(top + g, key + 8), pair(top + g + 8, key + 8));
        uint4 b[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            b[n] = make_uint4(across(0, 0, n * 8 + g, key), across(0, 0, n * 8 + g, key + 8),
                              across(0, 1, n * 8 + g, key), across(0, 1, n * 8 + g, key + 8));
        multiply(products, a, b);
    }

    for (u32 head0 = 0; head0 < group; head0 += HEADS) {
        const u32 heads = min((u32)HEADS, group - head0), head = key_head * group + head0 + warp;
        const u64 place = (u64)chunk * params.value_heads + key_head * group + head0; // of the first head
        f32 beta = 0.f;
        if (warp < heads) {
            f32 sum = 0.f;
            if (lane < rows) {
                const f32* at = proj + (u64)(first + lane) * params.stride + head;
                const f32 a = at[params.a_offset] + dt_bias[head];
                sum = -expf(a_log[head]) * (a > 20.f ? a : log1pf(expf(a)));
                beta = sigmoid(at[params.b_offset]);
            }
#pragma unroll
            for (int o = 1; o < 32; o *= 2) {
                const f32 before = __shfl_up_sync(~0u, sum, o);
                if (lane >= o) sum += before;
            }
            sums[warp][lane] = sum, betas[warp][lane] = beta;
            f32* decay = decays + (place + warp) * 2 * CHUNK + lane;
            decay[0] = expf(sum), decay[CHUNK] = expf(__shfl_sync(~0u, sum, 31) - sum);
        }
        __syncthreads();

        // A goes to shared memory; P is in the layout of a right operand already.
        for (u32 h = 0; h < heads; h++) {
            f32 decayed[4][4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const u32 r = top + g + i / 2 * 8, column = n * 8 + 2 * t + i % 2;
                    const f32 apart = sums[h][r] - sums[h][column];
                    decayed[n][i] = column < r + which ? products[n][i] * __expf(apart) : 0.f;
                    if (!which) mix[h][r][column] = decayed[n][i] * betas[h][r];
                }
            }
            if (which) {
                uint4* out = mixes_out + ((place + h) * MIX_TILES + 6) * TILE + lane;
#pragma unroll
                for (int step = 0; step < 2; step++) {
                    if (step * 16 > top) continue; // above the diagonal
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const f32(&left)[4] = decayed[2 * step], (&right)[4] = decayed[2 * step + 1];
                        const Pair a = split(left[2 * half], left[2 * half + 1]);
                        const Pair b = split(right[2 * half], right[2 * half + 1]);
                        out[(step * 2 + top / 8 + half) * TILE] = make_uint4(a.high, b.high, a.low, b.low);
                    }
                }
            }
        }
        __syncthreads();

        if (warp < heads) {
            f32(*const a)[MIX_PITCH] = mix[warp];
            f32 x[CHUNK]; // column `lane` of (I + A)^-1
#pragma unroll
            for (int i = 0; i < CHUNK; i++) {
                f32 parts[4] = {i == lane ? 1.f : 0.f, 0.f, 0.f, 0.f};
#pragma unroll
                for (int j = 0; j < i; j += 4) {
                    const float4 row = *reinterpret_cast<const float4*>(&a[i][j]);
                    parts[0] -= row.x * x[j];
                    if (j + 1 < i) parts[1] -= row.y * x[j + 1];
                    if (j + 2 < i) parts[2] -= row.z * x[j + 2];
                    if (j + 3 < i) parts[3] -= row.w * x[j + 3];
                }
                x[i] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < CHUNK; i++) a[i][lane] = x[i] * beta;
            __syncwarp();
            uint4* out = mixes_out + (place + warp) * MIX_TILES * TILE + lane;
#pragma unroll
            for (int tile = 0; tile < 6; tile++) {
                const int step = tile / 4, n = tile - step * 2;
                const f32* at = &a[n * 8 + g][step * 16 + 2 * t];
                const Pair left = split(at[0], at[1]), right = split(at[8], at[9]);
                out[tile * TILE] = make_uint4(left.high, right.high, left.low, right.low);
            }
        }
        __syncthreads();
    }
}

// Grid: (value_dim / 32, value_heads, segments), two pairs of warps a block. DELTA_DEPTH stages of shared memory.
KERNEL BOUNDS(128, 1) delta_chunks(const f32* qkv, const uint4* keys_in, const uint4* mixes, const f32* decays,
                                const u32* segments, f32* state, f32* y, DeltaRuleParams params) {
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const u32 pair = warp / 2, part = warp % 2;
    const u32 head = blockIdx.y, key_head = head / (params.value_heads / params.key_heads);
    const u32* segment = segments + blockIdx.z * 4;
    const u32 slot = segment[0], rows = segment[2], start = chunks_before(segments, blockIdx.z);
    const u32 keys = params.key_heads * KEY_DIM, values = params.value_heads * params.value_dim;
    const u32 column = (blockIdx.x * 2 + pair) * 16 + g; // and column + 8
    const bool inside[2] = {column < params.value_dim, column + 8 < params.value_dim};
    uint4* const ring = reinterpret_cast<uint4*>(dynamic_shared);
    __shared__ f32 handed[2][2][16][32]; // exchanged between the warps of a pair: K S, then W; Q S

    u32 asked = 0, asked_stage = 0, asked_chunk = start, taken = 0;
    const u32 end = start + (rows + CHUNK - 1) / CHUNK;
    auto ask = [&]() {
        if (asked_chunk < end) {
            const uint4* from = keys_in + ((u64)asked_chunk * params.key_heads + key_head) * KEY_TILES * TILE;
            u32 tiles = STAGE_TILES;
            if (asked_stage < READ_STAGES) {
                from += asked_stage * STAGE_TILES * TILE;
            } else if (asked_stage == READ_STAGES) {
                from = mixes + ((u64)asked_chunk * params.value_heads + head) * MIX_TILES * TILE, tiles = MIX_TILES;
            } else {
                from += READ_TILES * TILE, tiles = WRITE_TILES;
            }
            for (u32 i = threadIdx.x; i < tiles * TILE; i += 128) {
                const u32 to = (u32)__cvta_generic_to_shared(ring + asked * STAGE_TILES * TILE + i);
                copy_async(to, from + i);
            }
            if (++asked_stage == STAGES) asked_stage = 0, asked_chunk++;
            if (++asked == DELTA_DEPTH) asked = 0;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    // Waits for the next stage, starts loading another into the one just used, and returns this lane's part of the stage;
    // `of_each`: tiles of each warp of a pair.
    auto take = [&](u32 of_each) -> const uint4* {
        asm volatile("cp.async.wait_group %0;" ::"n"(DELTA_DEPTH - 2) : "memory");
        __syncthreads();
        ask();
        const uint4* stage = ring + (taken * STAGE_TILES + part * of_each) * TILE + lane;
        if (++taken == DELTA_DEPTH) taken = 0;
        return stage;
    };
#pragma unroll
    for (int i = 0; i < DELTA_DEPTH - 1; i++) ask();

    // S transposed, this warp's half of the keys: [tile of 8 keys][column g: keys 2t, 2t + 1; column g + 8: the same].
    f32 s[KEYS / 16][4];
    f32* const s_at = state + ((u64)slot * params.value_heads + head) * KEY_DIM * params.value_dim + column;
    auto key_of = [&](int n, int i) { return part * (KEYS / 2) + n * 8 + 2 * t + i % 2; };
    const bool fresh = segment[3] == 0;
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 key = key_of(n, i);
            s[n][i] = !fresh && inside[i / 2] && key < KEY_DIM ? s_at[(u64)key * params.value_dim + i / 2 * 8] : 0.f;
        }
    }

    for (u32 done = 0; done < rows; done += CHUNK) {
        const u64 row = segment[1] + done;
        const f32* v_at = qkv + row * (2 * keys + values) + 2 * keys + head * params.value_dim + column;
        const f32* decay_at = decays + ((u64)(start + done / CHUNK) * params.value_heads + head) * 2 * CHUNK;
        const f32 total = decay_at[CHUNK - 1];
        float2 decay[4], to_end[4];
        f32 v[4][4];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            decay[n] = *reinterpret_cast<const float2*>(decay_at + n * 8 + 2 * t);
            to_end[n] = *reinterpret_cast<const float2*>(decay_at + CHUNK + n * 8 + 2 * t);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 r = n * 8 + 2 * t + i % 2;
                const bool wanted = !part && inside[i / 2] && done + r < rows;
                v[n][i] = wanted ? v_at[(u64)r * (2 * keys + values) + i / 2 * 8] : 0.f;
            }
        }
        f32 read[8][4] = {}; // K S, then Q S over this warp's keys: four tiles of 8 rows each
#pragma unroll
        for (int stage = 0; stage < READ_STAGES; stage++) {
            const uint4* from = take(16);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint4 b[8];
#pragma unroll
                for (int n = 0; n < 8; n++) b[n] = from[(i * 8 + n) * TILE];
                multiply(read, Left(s[stage * 4 + 2 * i], s[stage * 4 + 2 * i + 1]), b);
            }
        }
        f32 sums[4][4]; // K S in the first warp of the pair, Q S in the second
#pragma unroll
        for (int i = 0; i < 16; i++) {
            handed[pair][!part][i][lane] = part ? read[i / 4][i % 4] : read[4 + i / 4][i % 4];
            sums[i / 4][i % 4] = part ? read[4 + i / 4][i % 4] : read[i / 4][i % 4];
        }
        const uint4* from = take(6);
        uint4 early[4], late[2]; // T in the first warp, P in the second: for the first 16 rows, for the others
#pragma unroll
        for (int n = 0; n < 4; n++) early[n] = from[n * TILE];
#pragma unroll
        for (int n = 0; n < 2; n++) late[n] = from[(4 + n) * TILE];
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const f32 d = i % 2 ? decay[i / 4].y : decay[i / 4].x;
            sums[i / 4][i % 4] = d * (sums[i / 4][i % 4] + handed[pair][part][i][lane]);
        }
        f32 w[4][4] = {};
        auto mix = [&](f32(&to)[4][4], const f32(&of)[4][4]) {
            multiply(to, Left(of[0], of[1]), early);
            multiply<2, 2>(to, Left(of[2], of[3]), late);
        };
        if (!part) {
#pragma unroll
            for (int i = 0; i < 16; i++) v[i / 4][i % 4] -= sums[i / 4][i % 4];
            mix(w, v);
#pragma unroll
            for (int i = 0; i < 16; i++) handed[pair][0][i][lane] = w[i / 4][i % 4];
        }
        from = take(WRITE_TILES / 2);
        if (part) {
#pragma unroll
            for (int i = 0; i < 16; i++) w[i / 4][i % 4] = handed[pair][0][i][lane];
            mix(sums, w);
            f32* y_at = y + row * values + head * params.value_dim + column;
#pragma unroll
            for (int i = 0; i < 16; i++) {
                const u32 r = i / 4 * 8 + 2 * t + i % 2;
                if (inside[i / 2 % 2] && done + r < rows) y_at[(u64)r * values + i / 2 % 2 * 8] = sums[i / 4][i % 4];
            }
        }
#pragma unroll
        for (int i = 0; i < 16; i++) w[i / 4][i % 4] *= i % 2 ? to_end[i / 4].y : to_end[i / 4].x;
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) s[n][i] *= total;
        }
#pragma unroll
        for (int step = 0; step < 2; step++) {
            uint4 b[KEYS / 16];
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) b[n] = from[(step * (KEYS / 16) + n) * TILE];
            multiply(s, Left(w[2 * step], w[2 * step + 1]), b);
        }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 key = key_of(n, i);
            if (inside[i / 2] && key < KEY_DIM) s_at[(u64)key * params.value_dim + i / 2 * 8] = s[n][i];
        }
    }
}
