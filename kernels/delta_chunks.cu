// The gated delta rule by chunks of 32 rows (the formulas: src/backend/cpu/delta_rule.rs), in two launches.
//
// delta_prepare, a block per chunk and key head, makes what does not depend on the state: normalised keys and queries,
// T = diag(exp(G_C - G)) (I + A)^-1 diag(beta) and M = (Q K^T * D) (I + A)^-1 diag(beta) of each value head. With
// R = V - exp(G) K S a chunk then is Y = exp(G) Q S + M R and S' = exp(G_C) S + K^T T R.
//
// delta_chunks goes through a segment's chunks. A warp has 16 columns of S, and all of them, transposed, in the
// accumulators of its tensor core: what is an accumulator's place after one product is an operand's in the next, so
// S, R and T R never leave registers and warps need nothing of each other. They share what stands on the right of
// all five products: it arrives by cp.async, a stage of 16 tiles at a time, in the order of use.
//
// Numbers are pairs of bf16, high and low (16 bits, the range of f32); a product is three mma, so that it is
// as good as the sums of f32 that it replaces.

constexpr int CHUNK = 32;
constexpr int KEYS = (KEY_DIM + 63) / 64 * 64, KEY_STEPS = KEYS / 16;
constexpr int STAGE = 16 * 32;                          // uint4s
constexpr int READ_STAGES = KEYS / 32, WRITE_STAGES = KEYS / 64; // that multiply S, and that make it
constexpr int STAGES = READ_STAGES + 1 + WRITE_STAGES, KEY_TILES = (READ_STAGES + WRITE_STAGES) * STAGE;

// An operand's two halves of two numbers.
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

// The left operand of 16 x 16 numbers.
struct Left {
    Pair at[4];

    // From two tiles of accumulators side by side.
    __device__ __forceinline__ Left(const f32 (&a)[4], const f32 (&b)[4])
        : at{split(a[0], a[1]), split(a[2], a[3]), split(b[0], b[1]), split(b[2], b[3])} {}
    __device__ __forceinline__ Left(Pair a, Pair b, Pair c, Pair d) : at{a, b, c, d} {}
};

// d[FIRST ..] += a b for COUNT tiles b of 16 x 8 numbers: high words, low words. Equal accumulators come far apart.
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

// Chunks of the segments before this one.
__device__ __forceinline__ u32 chunks_before(const u32* segments, u32 segment) {
    u32 chunks = 0;
    for (u32 s = 0; s < segment; s++) chunks += (segments[s * 4 + 2] + CHUNK - 1) / CHUNK;
    return chunks;
}

constexpr int PITCH = KEYS + 8;        // of a row of keys or queries: no bank twice
constexpr int MIX_PITCH = CHUNK + 4;   // of a row of 32 x 32 numbers

// Grid: (key_heads, chunks of a segment, segments).
KERNEL BOUNDS(128) delta_prepare(const f32* qkv, const f32* proj, const f32* a_log, const f32* dt_bias,
                                 const u32* segments, uint4* keys_out, uint4* mixes_out, f32* decays,
                                 DeltaRuleParams params) {
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const u32 key_head = blockIdx.x, group = params.value_heads / params.key_heads;
    const u32* segment = segments + blockIdx.z * 4;
    if (blockIdx.y * CHUNK >= segment[2]) return;
    const u32 first = segment[1] + blockIdx.y * CHUNK, rows = min(CHUNK, segment[2] - blockIdx.y * CHUNK);
    const u32 chunk = chunks_before(segments, blockIdx.z) + blockIdx.y;
    const u32 keys = params.key_heads * KEY_DIM, width = 2 * keys + params.value_heads * params.value_dim;

    // Keys and queries, [key or query][high or low][row][key]; later a 32 x 32 matrix a warp.
    __shared__ __align__(16) char memory[2 * 2 * CHUNK * PITCH * 2];
    u16(*const rows_of)[2][CHUNK][PITCH] = reinterpret_cast<u16(*)[2][CHUNK][PITCH]>(memory);
    static_assert(sizeof(memory) >= 4 * CHUNK * MIX_PITCH * 4, "a matrix a warp");
    __shared__ f32 products[2][CHUNK][CHUNK + 1]; // K K^T and Q K^T

#pragma unroll 2
    for (u32 i = warp; i < 2 * CHUNK; i += 4) {
        const u32 which = i / CHUNK, r = i % CHUNK;
        const f32* row = qkv + (u64)(first + r) * width + (which ? 0 : keys) + key_head * KEY_DIM;
        f32 v[KEYS / 32], squares = 0.f;
#pragma unroll
        for (int n = 0; n < KEYS / 32; n++) {
            const u32 key = n * 32 + lane;
            v[n] = r < rows && key < KEY_DIM ? row[key] : 0.f;
            squares += v[n] * v[n];
        }
        const f32 scale = rsqrtf(warp_sum(squares) + 1e-6f) * (which ? rsqrtf((f32)KEY_DIM) : 1.f);
#pragma unroll
        for (int n = 0; n < KEYS / 32; n++) {
            const u16 high = to_bf16(v[n] * scale);
            rows_of[which][0][r][n * 32 + lane] = high;
            rows_of[which][1][r][n * 32 + lane] = to_bf16(v[n] * scale - from_bf16(high));
        }
    }
    __syncthreads();

    // Two numbers of a row.
    auto across = [&](u32 which, u32 half, u32 r, u32 key) {
        return *reinterpret_cast<const u32*>(&rows_of[which][half][r][key]);
    };
    // Two of a column.
    auto down = [&](u32 half, u32 r, u32 key) {
        return (u32)rows_of[0][half][r][key] | (u32)rows_of[0][half][r + 1][key] << 16;
    };
    uint4* out = keys_out + ((u64)chunk * params.key_heads + key_head) * KEY_TILES + lane;
    for (u32 tile = warp; tile < KEY_STEPS * 8; tile += 4) {
        const u32 which = tile / 4 % 2, r = tile % 4 * 8 + g, key = tile / 8 * 16 + 2 * t;
        out[tile * 32] = make_uint4(across(which, 0, r, key), across(which, 0, r, key + 8),
                                    across(which, 1, r, key), across(which, 1, r, key + 8));
    }
    out += READ_STAGES * STAGE;
    for (u32 tile = warp; tile < WRITE_STAGES * 16; tile += 4) {
        const u32 key = (tile / 16 * 8 + tile % 8) * 8 + g, r = tile / 8 % 2 * 16 + 2 * t;
        out[tile * 32] = make_uint4(down(0, r, key), down(0, r + 8, key), down(1, r, key), down(1, r + 8, key));
    }

    // A warp's 16 rows of one product.
    const u32 which = warp / 2, top = warp % 2 * 16;
    f32 sums[4][4] = {};
#pragma unroll 2
    for (u32 key = 2 * t; key < KEYS; key += 16) {
        auto pair = [&](u32 r, u32 key) { return Pair{across(which, 0, r, key), across(which, 1, r, key)}; };
        const Left a(pair(top + g, key), pair(top + g + 8, key), pair(top + g, key + 8), pair(top + g + 8, key + 8));
        uint4 b[4];
#pragma unroll
        for (int n = 0; n < 4; n++)
            b[n] = make_uint4(across(0, 0, n * 8 + g, key), across(0, 0, n * 8 + g, key + 8),
                              across(0, 1, n * 8 + g, key), across(0, 1, n * 8 + g, key + 8));
        multiply(sums, a, b);
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) products[which][top + g + i / 2 * 8][n * 8 + 2 * t + i % 2] = sums[n][i];
    }
    __syncthreads();

    // A warp per value head: its lanes are rows of A, then columns of its inverse.
    f32(*const mix)[MIX_PITCH] = reinterpret_cast<f32(*)[MIX_PITCH]>(memory) + warp * CHUNK;
    for (u32 head = key_head * group + warp; head < (key_head + 1) * group; head += 4) {
        f32 sum = 0.f, beta = 0.f;
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
        const u64 place = (u64)chunk * params.value_heads + head;
        decays[place * CHUNK + lane] = expf(sum);
        const f32 to_end = expf(__shfl_sync(~0u, sum, 31) - sum);

        // Row `lane` of one of the products with its decays, times `scale`, up to column `columns`.
        auto decayed = [&](u32 which, f32 scale, u32 columns) {
            __syncwarp();
#pragma unroll 4
            for (u32 j = 0; j < CHUNK; j++) {
                const f32 apart = sum - __shfl_sync(~0u, sum, j);
                mix[lane][j] = j < columns ? products[which][lane][j] * scale * expf(apart) : 0.f;
            }
            __syncwarp();
        };
        auto row = [&](u32 i, u32 j) { return *reinterpret_cast<const float4*>(&mix[i][j]); };
        // Stores the matrix as tiles `first`, ... of each step; those above the diagonal are never read.
        auto store = [&](u32 first) {
            __syncwarp();
            uint4* out = mixes_out + place * STAGE + first * 32 + lane;
#pragma unroll
            for (u32 step = 0; step < 2; step++) {
#pragma unroll
                for (u32 n = 2 * step; n < 4; n++) {
                    const f32* at = &mix[n * 8 + g][step * 16 + 2 * t];
                    const Pair a = split(at[0], at[1]), b = split(at[8], at[9]);
                    out[(step * 8 + n) * 32] = make_uint4(a.high, b.high, a.low, b.low);
                }
            }
        };

        decayed(0, beta, lane);
        f32 x[CHUNK]; // column `lane` of (I + A)^-1
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            f32 parts[4] = {i == lane ? 1.f : 0.f, 0.f, 0.f, 0.f};
#pragma unroll
            for (int j = 0; j < i; j += 4) {
                const float4 a = row(i, j);
                parts[0] -= a.x * x[j];
                if (j + 1 < i) parts[1] -= a.y * x[j + 1];
                if (j + 2 < i) parts[2] -= a.z * x[j + 2];
                if (j + 3 < i) parts[3] -= a.w * x[j + 3];
            }
            x[i] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            x[i] *= beta;
            mix[i][lane] = x[i] * __shfl_sync(~0u, to_end, i);
        }
        store(0);
        decayed(1, 1.f, lane + 1);
#pragma unroll 2
        for (u32 i = 0; i < CHUNK; i++) {
            f32 parts[4] = {};
#pragma unroll
            for (int j = 0; j < CHUNK; j += 4) {
                const float4 p = row(i, j);
                parts[0] += p.x * x[j], parts[1] += p.y * x[j + 1];
                parts[2] += p.z * x[j + 2], parts[3] += p.w * x[j + 3];
            }
            __syncwarp();
            mix[i][lane] = (parts[0] + parts[1]) + (parts[2] + parts[3]);
        }
        store(4);
        __syncwarp();
    }
}

// Grid: (value_dim / (16 WARPS), value_heads, segments); DEPTH stages of shared memory.
KERNEL BOUNDS(32 * DELTA_WARPS) delta_chunks(const f32* qkv, const uint4* keys_in, const uint4* mixes, const f32* decays,
                                       const u32* segments, f32* state, f32* y, DeltaRuleParams params) {
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const u32 head = blockIdx.y, key_head = head / (params.value_heads / params.key_heads);
    const u32* segment = segments + blockIdx.z * 4;
    const u32 slot = segment[0], rows = segment[2], start = chunks_before(segments, blockIdx.z);
    const u32 keys = params.key_heads * KEY_DIM, values = params.value_heads * params.value_dim;
    const u32 column = (blockIdx.x * DELTA_WARPS + warp) * 16 + g; // and 8 behind it
    const bool inside[2] = {column < params.value_dim, column + 8 < params.value_dim};
    uint4* const ring = reinterpret_cast<uint4*>(dynamic_shared);

    u32 asked = 0, asked_stage = 0, asked_chunk = start, taken = 0;
    const u32 end = start + (rows + CHUNK - 1) / CHUNK;
    auto ask = [&]() {
        if (asked_chunk < end) {
            const uint4* from = keys_in + ((u64)asked_chunk * params.key_heads + key_head) * KEY_TILES
                                + (asked_stage - (asked_stage > READ_STAGES)) * STAGE;
            if (asked_stage == READ_STAGES) from = mixes + ((u64)asked_chunk * params.value_heads + head) * STAGE;
#pragma unroll
            for (u32 i = threadIdx.x; i < STAGE; i += 32 * DELTA_WARPS) {
                const u32 to = (u32)__cvta_generic_to_shared(ring + asked * STAGE + i);
                asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from + i) : "memory");
            }
            if (++asked_stage == STAGES) asked_stage = 0, asked_chunk++;
            if (++asked == DELTA_DEPTH) asked = 0;
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    // The next stage, from tile `lane` of each tile on; the one before is no longer read.
    auto take = [&]() -> const uint4* {
        asm volatile("cp.async.wait_group %0;" ::"n"(DELTA_DEPTH - 2) : "memory");
        __syncthreads();
        ask();
        const uint4* stage = ring + taken * STAGE + lane;
        if (++taken == DELTA_DEPTH) taken = 0;
        return stage;
    };
#pragma unroll
    for (int i = 0; i < DELTA_DEPTH - 1; i++) ask();

    // S transposed: [tile of 8 keys][column g: keys 2t, 2t + 1, column g + 8: the same].
    f32 s[KEYS / 8][4];
    f32* const s_at = state + ((u64)slot * params.value_heads + head) * KEY_DIM * params.value_dim + column;
    const bool fresh = segment[3] == 0;
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 key = n * 8 + 2 * t + i % 2;
            s[n][i] = !fresh && inside[i / 2] && key < KEY_DIM ? s_at[(u64)key * params.value_dim + i / 2 * 8] : 0.f;
        }
    }

    for (u32 done = 0; done < rows; done += CHUNK) {
        const u64 row = segment[1] + done;
        const f32* v_at = qkv + row * (2 * keys + values) + 2 * keys + head * params.value_dim + column;
        const f32* decay_at = decays + ((u64)(start + done / CHUNK) * params.value_heads + head) * CHUNK;
        f32 v[4][4];
        float2 decay[4];
        const f32 total = decay_at[CHUNK - 1];
#pragma unroll
        for (int n = 0; n < 4; n++) {
            decay[n] = *reinterpret_cast<const float2*>(decay_at + n * 8 + 2 * t);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 r = n * 8 + 2 * t + i % 2;
                v[n][i] = inside[i / 2] && done + r < rows ? v_at[(u64)r * (2 * keys + values) + i / 2 * 8] : 0.f;
            }
        }
        f32 read[8][4] = {}; // K S, then Q S: four tiles of 8 rows each
#pragma unroll
        for (int stage = 0; stage < READ_STAGES; stage++) {
            const uint4* from = take();
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int step = 2 * stage + half;
                uint4 b[8];
#pragma unroll
                for (int n = 0; n < 8; n++) b[n] = from[(half * 8 + n) * 32];
                multiply(read, Left(s[2 * step], s[2 * step + 1]), b);
            }
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const f32 d = i % 2 ? decay[n].y : decay[n].x;
                v[n][i] -= d * read[n][i];
                read[n][i] = 0.f;
                read[4 + n][i] *= d;
            }
        }
        {
            const uint4* from = take();
            uint4 b[8], c[2], e[2];
#pragma unroll
            for (int n = 0; n < 8; n++) b[n] = from[n * 32];
#pragma unroll
            for (int n = 0; n < 2; n++) c[n] = from[(10 + n) * 32], e[n] = from[(14 + n) * 32];
            multiply(read, Left(v[0], v[1]), b);
            const Left late(v[2], v[3]);
            multiply<2, 2>(read, late, c);
            multiply<2, 6>(read, late, e);
        }
        f32* y_at = y + row * values + head * params.value_dim + column;
#pragma unroll
        for (int n = 0; n < 4; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 r = n * 8 + 2 * t + i % 2;
                if (inside[i / 2] && done + r < rows) y_at[(u64)r * values + i / 2 * 8] = read[4 + n][i];
            }
        }
        const Left early(read[0], read[1]), late(read[2], read[3]);
#pragma unroll
        for (int stage = 0; stage < WRITE_STAGES; stage++) {
            const uint4* from = take();
            uint4 b[8];
            f32(&part)[8][4] = *reinterpret_cast<f32(*)[8][4]>(&s[stage * 8]);
#pragma unroll
            for (int n = 0; n < 8; n++) {
                b[n] = from[n * 32];
#pragma unroll
                for (int i = 0; i < 4; i++) part[n][i] *= total;
            }
            multiply(part, early, b);
#pragma unroll
            for (int n = 0; n < 8; n++) b[n] = from[(8 + n) * 32];
            multiply(part, late, b);
        }
    }
#pragma unroll
    for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 key = n * 8 + 2 * t + i % 2;
            if (inside[i / 2] && key < KEY_DIM) s_at[(u64)key * params.value_dim + i / 2 * 8] = s[n][i];
        }
    }
}
