#if defined(CACHE_F16) && HEAD_DIM % 16 == 0 && HEAD_DIM <= 256
// Causal attention of many rows of a segment (prefill), flash-attention style: 64 rows of one head against tiles of
// positions, both products on tensor cores, online softmax in f32. Grid: (row tiles, heads, segments). The output is not
// rotated (Hadamard). A warp has 16 rows. q, k and v tiles are in shared memory, rows padded by 16 bytes so that ldmatrix
// has no bank conflicts. Constants: HEAD_DIM, TILE_Q rows, TILE_P positions, PITCH f16 elements a padded row. A tile of v is loaded during the scores' product, the next tile of k during the output's.
// Bound: compute, 178 TFLOP/s. H200, 512 rows at position 4,096: 193 us for 32 heads of 128, 327 us for 16 of 256. Versions:
// docs/log/cuda-prefill.md.
constexpr u32 WARPS = TILE_Q / 16, THREADS = WARPS * 32;

__device__ __forceinline__ void ldmatrix(u32 (&r)[4], const u16* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((u32)__cvta_generic_to_shared(at)));
}

__device__ __forceinline__ void ldmatrix_transposed(u32 (&r)[4], const u16* at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"((u32)__cvta_generic_to_shared(at)));
}

// exp2f() that flushes results below 2^-126 to 0.
__device__ __forceinline__ f32 power_of_2(f32 x) {
    f32 y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Begins to copy positions p0 .. p0 + TILE_P - 1 of one head's `count` keys or values to shared memory; past the end the
// last one again.
__device__ __forceinline__ void fetch(u16* tile, const u16* cache, u32 p0, u32 count) {
#pragma unroll 4
    for (u32 i = threadIdx.x; i < TILE_P * HEAD_DIM / 8; i += THREADS) {
        const u32 p = i / (HEAD_DIM / 8), e = i % (HEAD_DIM / 8) * 8;
        const u32 to = (u32)__cvta_generic_to_shared(tile + p * PITCH + e);
        const u16* from = cache + (u64)min(p0 + p, count - 1) * HEAD_DIM + e;
        copy_async(to, from);
    }
}

// Waits for all copies of all threads; a barrier of the block.
__device__ __forceinline__ void arrived() {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncthreads();
}

KERNEL BOUNDS(THREADS, 2)
attention_rows(const f32* qkv, const u16* k_cache, const u16* v_cache, const u32* segments, f32* y,
               AttentionParams params) {
    u16 *q_tile = reinterpret_cast<u16*>(phase_shared()), *k_tile = q_tile + TILE_Q * PITCH, *v_tile = k_tile + TILE_P * PITCH;
    release_next();
    wait_inputs();
    const u32* segment = segments + blockIdx.z * 4;
    const u32 slot = segment[0], first = segment[1], rows = segment[2], before = segment[3];
    // Rows that see the most positions come first, so that no long block starts last.
    const u32 r0 = (gridDim.x - 1 - blockIdx.x) * TILE_Q, head = blockIdx.y;
    if (r0 >= rows) return;
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const u32 kv = head / (params.heads / params.kv_heads);
    const u64 cache_at = cache_row(params, slot, kv, 0, HEAD_DIM);
    const u16 *keys = k_cache + cache_at, *values = v_cache + cache_at;
    const u32 count = before + min(r0 + TILE_Q, rows);  // positions that the row tile's last row sees
    const u32 nearest = before + r0 + warp * 16;        // position of the warp's first row
    // The first tile that the row tile's first row sees.
    const u32 start = first_seen(params.window, before + r0) / TILE_P * TILE_P;
    fetch(k_tile, keys, start, count);

#pragma unroll 4
    for (u32 i = threadIdx.x; i < TILE_Q * HEAD_DIM / 2; i += THREADS) {
        const u32 r = i / (HEAD_DIM / 2), e = i % (HEAD_DIM / 2) * 2;
        const f32* q = qkv + (u64)(first + min(r0 + r, rows - 1)) * params.stride + head * params.q_stride + e;
        const f32 scale = params.scale * LOG2E;
        *reinterpret_cast<u32*>(q_tile + r * PITCH + e) = pack_f16(q[0] * scale, q[1] * scale);
    }
    f32 out[HEAD_DIM / 8][4] = {}, top[2] = {LOWEST, LOWEST}, sum[2] = {0.f, 0.f};
#pragma unroll 1
    for (u32 p0 = start; p0 < count; p0 += TILE_P) {
        const bool seen = p0 < nearest + 16; // whether one of the warp's rows sees the tile
        arrived();
        fetch(v_tile, values, p0, count);
        f32 score[TILE_P / 8][4] = {};
        if (seen) {
#pragma unroll
            for (u32 e = 0; e < HEAD_DIM; e += 16) {
                u32 a[4];
                ldmatrix(a, q_tile + (warp * 16 + lane % 16) * PITCH + e + lane / 16 * 8);
#pragma unroll
                for (u32 n = 0; n < TILE_P / 8; n += 2) {
                    u32 b[4];
                    ldmatrix(b, k_tile + (n * 8 + lane / 16 * 8 + lane % 8) * PITCH + e + lane / 8 % 2 * 8);
                    mma(score[n], a[0], a[1], a[2], a[3], b[0], b[1]);
                    mma(score[n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
                }
            }
        }
        arrived();
        if (p0 + TILE_P < count) fetch(k_tile, keys, p0 + TILE_P, count);
        if (!seen) continue;
        // Some of the tile is in the future of some of the warp's rows, or before their windows. A row that sees nothing of
        // its first tile has sums of no meaning, which its first position that it sees multiplies by 0.
        if (p0 + TILE_P > nearest + 1 || p0 < first_seen(params.window, nearest + 15)) {
#pragma unroll
            for (u32 n = 0; n < TILE_P / 8; n++) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const u32 position = p0 + n * 8 + 2 * t + i % 2, row = nearest + g + i / 2 * 8;
                    if (position > row || position < first_seen(params.window, row)) score[n][i] = LOWEST;
                }
            }
        }
        f32 peak[2] = {top[0], top[1]};
#pragma unroll
        for (u32 n = 0; n < TILE_P / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) peak[i / 2] = fmaxf(peak[i / 2], score[n][i]);
        }
#pragma unroll
        for (u32 h = 0; h < 2; h++) {
            peak[h] = fmaxf(peak[h], __shfl_xor_sync(~0u, peak[h], 1));
            peak[h] = fmaxf(peak[h], __shfl_xor_sync(~0u, peak[h], 2));
            const f32 keep = power_of_2(top[h] - peak[h]);
            top[h] = peak[h];
            sum[h] *= keep;
#pragma unroll
            for (u32 n = 0; n < HEAD_DIM / 8; n++) out[n][2 * h] *= keep, out[n][2 * h + 1] *= keep;
        }
#pragma unroll
        for (u32 n = 0; n < TILE_P / 8; n++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                score[n][i] = power_of_2(score[n][i] - top[i / 2]);
                sum[i / 2] += score[n][i];
            }
        }
#pragma unroll
        for (u32 n = 0; n < TILE_P / 8; n += 2) {
            const u32 a0 = pack_f16(score[n][0], score[n][1]), a1 = pack_f16(score[n][2], score[n][3]);
            const u32 a2 = pack_f16(score[n + 1][0], score[n + 1][1]), a3 = pack_f16(score[n + 1][2], score[n + 1][3]);
#pragma unroll
            for (u32 e = 0; e < HEAD_DIM / 8; e += 2) {
                u32 b[4];
                ldmatrix_transposed(b, v_tile + (n * 8 + lane % 16) * PITCH + e * 8 + lane / 16 * 8);
                mma(out[e], a0, a1, a2, a3, b[0], b[1]);
                mma(out[e + 1], a0, a1, a2, a3, b[2], b[3]);
            }
        }
    }
#pragma unroll
    for (u32 h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
        sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
        const u32 r = r0 + warp * 16 + g + h * 8;
        if (r >= rows) continue;
        const f32* gate = qkv + (u64)(first + r) * params.stride + head * params.q_stride + HEAD_DIM;
        f32* to = y + ((u64)(first + r) * params.heads + head) * HEAD_DIM;
#pragma unroll
        for (u32 n = 0; n < HEAD_DIM / 8; n++) {
            const u32 e = n * 8 + 2 * t;
            float2 v = make_float2(out[n][2 * h] / sum[h], out[n][2 * h + 1] / sum[h]);
            if (params.gated) v.x *= sigmoid(gate[e]), v.y *= sigmoid(gate[e + 1]);
            *reinterpret_cast<float2*>(to + e) = v;
        }
    }
}
#endif
