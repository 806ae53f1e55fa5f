// Assignment of codes with error feedback (src/pq/feedback.rs), a block of columns at a time: cuBLAS computes the correction
// that earlier blocks' errors ask of this block, this kernel the correction within the block. A warp takes ROWS rows, column
// by column: its lanes divide the centroids of a search, agree on the nearest, then divide the columns that receive the
// error. cuBLAS adds in another order than the CPU, so a code here and there differs from the CPU's.
// Bound: latency of the chain of a row's sub-vectors, hidden by many warps a multiprocessor. Figures:
// docs/log/quantizing.md.

constexpr u32 D = VECTOR;
// Words of a centroid in the table: its elements, then -|c|^2 / 2, padded to whole loads of 16 bytes.
constexpr u32 WIDTH = (D + 4) / 4 * 4;
constexpr u32 BLOCK = FEEDBACK_COLUMNS, WARPS = FEEDBACK_WARPS, ROWS = FEEDBACK_ROWS / WARPS;

// Copies centroids `[count, d]` to the table's layout. Grid: (count / 256).
KERNEL BOUNDS(256) centroid_table(const f32* centroids, f32* table, u32 count) {
    wait_inputs();
    const u32 i = blockIdx.x * 256 + threadIdx.x;
    if (i >= count) return;
    f32 norm = 0;
    for (u32 e = 0; e < WIDTH; e++) table[(u64)i * WIDTH + e] = 0;
    for (u32 e = 0; e < D; e++) {
        const f32 c = centroids[(u64)i * D + e];
        table[(u64)i * WIDTH + e] = c, norm = __fadd_rn(norm, __fmul_rn(c, c));
    }
    table[(u64)i * WIDTH + D] = -__fmul_rn(norm, 0.5f);
}

struct Place {
    u32 rows, cols, subspaces, group, k;
    // The columns of this block: start .. end.
    u32 start, end;
};

// An integer that orders as v does; both zeros give the same.
__device__ __forceinline__ u32 ordered(f32 v) {
    const u32 bits = __float_as_uint(v + 0.f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// `correction` `[rows, end - start]` is what the errors of the columns before `start` add, null for the first block;
// `shares` `[cols, cols]` the part of each column's error that goes to each column. Grid: (rows / (ROWS * WARPS)).
KERNEL BOUNDS(WARPS * 32) feedback(const f32* weights, const f32* correction, f32* errors, const f32* shares, const f32* table,
                                u16* codes, Place p) {
    __shared__ f32 prepared[WARPS][BLOCK][ROWS], added[WARPS][BLOCK][ROWS];
    wait_inputs();
    const u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32, width = p.end - p.start;
    const u32 first_row = (blockIdx.x * WARPS + warp) * ROWS;
    f32(*w)[ROWS] = prepared[warp];
    f32(*add)[ROWS] = added[warp];
    for (u32 r = 0; r < ROWS; r++) {
        const u64 row = min(first_row + r, p.rows - 1);
        for (u32 c = lane; c < width; c += 32) {
            w[c][r] = weights[row * p.cols + p.start + c];
            add[c][r] = correction ? correction[row * width + c] : 0.f;
        }
    }
    __syncwarp();
    for (u32 c = 0; c < width; c += D) {
        const u32 size = min(D, width - c), j = (p.start + c) / D;
        const f32* centroids = table + (u64)(j / p.group) * p.k * WIDTH;
        f32 x[D][ROWS], top[ROWS];
        u32 best[ROWS];
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            top[r] = __int_as_float(0xff800000), best[r] = 0;
#pragma unroll
            for (u32 e = 0; e < D; e++) x[e][r] = e < size ? __fadd_rn(w[c + e][r], add[c + e][r]) : 0.f;
        }
#pragma unroll 2
        for (u32 i = lane; i < p.k; i += 32) {
            f32 centroid[WIDTH];
#pragma unroll
            for (u32 e = 0; e < WIDTH; e += 4) {
                const float4 four = __ldg(reinterpret_cast<const float4*>(centroids + (u64)i * WIDTH + e));
                centroid[e] = four.x, centroid[e + 1] = four.y, centroid[e + 2] = four.z, centroid[e + 3] = four.w;
            }
            if (size < D) {
                // A row's last sub-vector may be shorter than d: only its elements count.
                centroid[D] = 0;
                for (u32 e = 0; e < D; e++) {
                    if (e >= size) centroid[e] = 0;
                    centroid[D] -= 0.5f * centroid[e] * centroid[e];
                }
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                f32 score = centroid[D];
#pragma unroll
                for (u32 e = 0; e < D; e++) score = __fadd_rn(score, __fmul_rn(x[e][r], centroid[e]));
                if (score > top[r]) top[r] = score, best[r] = i;
            }
        }
        u32 of_lane = 0;
#pragma unroll
        for (u32 r = 0; r < ROWS; r++) {
            const u32 key = ordered(top[r]), most = __reduce_max_sync(~0u, key);
            best[r] = min(__reduce_min_sync(~0u, key == most ? best[r] : ~0u), p.k - 1);
            if (lane == r) of_lane = best[r];
        }
        if (lane < ROWS && first_row + lane < p.rows) codes[(u64)(first_row + lane) * p.subspaces + j] = of_lane;
        f32 error[D][ROWS];
#pragma unroll
        for (u32 e = 0; e < D; e++) {
#pragma unroll
            for (u32 r = 0; r < ROWS; r++) {
                const f32 centroid = centroids[(u64)best[r] * WIDTH + e];
                error[e][r] = e < size ? w[c + e][r] - centroid : 0.f;
            }
        }
        __syncwarp();
        for (u32 e = 0; e < size; e++) {
            if (lane < ROWS) w[c + e][lane] = w[c + e][lane] - centroids[(u64)of_lane * WIDTH + e];
        }
        for (u32 at = c + D + lane; at < width; at += 32) {
#pragma unroll
            for (u32 e = 0; e < D; e++) {
                const f32 share = __ldg(shares + (u64)(p.start + c + e) * p.cols + p.start + at);
#pragma unroll
                for (u32 r = 0; r < ROWS; r++) add[at][r] += share * error[e][r];
            }
        }
        __syncwarp();
    }
    // `w` holds the errors now.
    for (u32 r = 0; r < ROWS && first_row + r < p.rows; r++) {
        for (u32 c = lane; c < width; c += 32) errors[(u64)(first_row + r) * p.cols + p.start + c] = w[c][r];
    }
}
