// y = W x for product-quantized W with one codebook and one row of x, as a phase of the persistent decode kernel (persistent.cu).
// What precedes and follows the product is fused in, so a layer is four of these phases and what mixes positions.
//
// x. Every block needs all of x and prepares it for itself: an optional norm, then the Hadamard rotation, 512 elements (a
// span) a warp. Of the 9 binary digits of an element's index registers cover the upper four, then, after an exchange through
// shared memory, the lower four, and a shuffle the one between; warps wait for each other only for the norm's sum. The
// rotation's signs are applied with the norm's weights, or by the phase that wrote x where there is no norm. x is then
// stored in the order of mma.sync's B operand as f16 and f16 remainder, in two columns, so that no precision is lost.
//
// Product. A block owns a contiguous range of row tiles, its warps share the columns. A lane looks up its 32 codes of a tile
// in the table in shared memory, which gives the A operand as it is. Each lane has four tiles of codes in flight. First
// codes, table and the norm's weights do not depend on the previous phase and are loaded before the grid barrier. The warps'
// sums meet in shared memory: no atomics, no memset, deterministic.
//
// Sums. Scaled and added to a residual; or f(gate) * up, with SiLU or GELU as f, where a block takes each gate row tile with its up row tile.
//
// Bound: memory and table lookups at once. Loads alone take 58 clocks a KB of codes and multiprocessor, lookups and mma 42;
// here 57, because the first 64 KB are in L2 by then. H200, llama3-8b at 2-256: 537 tok/s. Versions:
// docs/log/cuda-decode.md.

// x is staged with 2 slots more than it takes, so that storing 16 bytes of neighbouring pairs a thread has no bank conflicts.
constexpr u32 PITCH = 40, TILE_STAGE = PAIRS / 4 * PITCH;
static_assert(WARPS * TILE_STAGE * 4 == PQ_STAGE_SHARED / 32 * PITCH, "what the host gives a block");
constexpr u32 COLUMNS_OF_TILE = TILE_CODES * D;
constexpr u32 ROUND = WARPS * SPAN; // elements of x that a block prepares at a time
// Words of a staged span. Its first SPAN_STAGE words serve the rotation's exchange before it is stored.
constexpr u32 SPAN_WORDS = SPAN / COLUMNS_OF_TILE * TILE_STAGE;

// The arguments, as they lie in a phase of the persistent kernel.
using Call = PqRowCall;

// Prefetches to L2 the beginning of what this block will read of the next matrix, so that memory is busy during the grid
// barrier.
__device__ __forceinline__ void prefetch_next(const Call& call) {
    const u32 paired = call.next_paired, tiles = call.next_row_tiles >> paired;
    const u64 tile_bytes = call.next_tile_bytes;
    const u32 first = tiles * real_block() / real_grid(), last = tiles * (real_block() + 1) / real_grid();
    const u32 bytes = min((last - first) * (u32)tile_bytes, PREFETCH_BYTES >> paired);
    for (u32 half = 0; half <= paired; half++) {
        const char* from = call.next + (first + half * tiles) * tile_bytes;
        for (u32 i = threadIdx.x * 128; i < bytes; i += THREADS * 128) prefetch_l2(from + i);
    }
}

// ---- x ----

// The rotation's signs for a lane's elements of the span that begins at `first`, a bit each. Those of a warp's first span
// are the same for every matrix and are kept in row_signs.
__device__ __forceinline__ u32 signs_of(u32 first) {
    const bool keep = first == threadIdx.x / 32 * SPAN;
    const u32 kept = row_signs[threadIdx.x];
    if (keep && kept) return kept;
    u32 signs = 1u << SPAN_EACH;
#pragma unroll 1
    for (u32 k = 0; k < SPAN_EACH; k++) signs |= (u32)(rotation_sign(first + 32 * k + threadIdx.x % 32) < 0.f) << k;
    if (keep) row_signs[threadIdx.x] = signs;
    return signs;
}

// Stores eight elements as f16 pairs and the pairs of their remainders.
__device__ __forceinline__ void store_pairs(u32* to, const f32* e, f32 scale) {
    u32 high[4], low[4];
#pragma unroll
    for (u32 p = 0; p < 4; p++) {
        const f32 a = e[2 * p] * scale, b = e[2 * p + 1] * scale;
        high[p] = pack_f16(a, b);
        low[p] = pack_f16(a - low_f16(high[p]), b - high_f16(high[p]));
    }
    *reinterpret_cast<uint4*>(to) = make_uint4(high[0], high[1], high[2], high[3]);
    *reinterpret_cast<uint4*>(to + 16) = make_uint4(low[0], low[1], low[2], low[3]);
}

// A barrier of all warps, which may reach it at different places in the code.
__device__ __forceinline__ void meet() { asm volatile("barrier.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// The sum of what each warp has stored.
__device__ __forceinline__ f32 total_of(const f32 (&parts)[WARPS]) {
    f32 total = 0.f;
#pragma unroll
    for (u32 k = 0; k < WARPS; k += 4) {
        const float4 four = *reinterpret_cast<const float4*>(parts + k);
        total += four.x + four.y + (four.z + four.w);
    }
    return total;
}

#ifdef PQ_ADDED_NORM
// Makes of a warp's span e of `added`, all of which the block's warps have among them, the sum of `residual` and its norm,
// and writes it to x. All threads must call it.
__device__ __forceinline__ void add_norm(f32 (&e)[SPAN_EACH], const Call& call, u32 first) {
    __shared__ __align__(16) f32 squares[WARPS];
    const u32 lane = threadIdx.x & 31, in = call.cols;
    f32 sum = 0.f;
#pragma unroll
    for (u32 k = 0; k < SPAN_EACH; k++) sum += e[k] * e[k];
    sum = warp_sum(sum);
    if (lane == 0) squares[threadIdx.x >> 5] = sum;
    meet();
    const f32 scale = rsqrtf(total_of(squares) / in + call.added_eps);
    // A quarter at a time: with more loads in flight registers spill.
    constexpr u32 AT_ONCE = SPAN_EACH / 4;
#pragma unroll
    for (u32 k0 = 0; k0 < SPAN_EACH; k0 += AT_ONCE) {
        f32 w[AT_ONCE], before[AT_ONCE];
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            const u32 i = min(first + 32 * (k0 + k) + lane, in - 1);
            w[k] = call.added_weight[i] + call.added_offset, before[k] = call.residual[i];
        }
#pragma unroll
        for (u32 k = 0; k < AT_ONCE; k++) {
            e[k0 + k] = first + 32 * (k0 + k) + lane < in ? before[k] + e[k0 + k] * w[k] * scale : 0.f;
        }
        __syncwarp();
    }
    if (first / SPAN % real_grid() != real_block()) return;
#pragma unroll
    for (u32 k = 0; k < SPAN_EACH; k++) {
        if (first + 32 * k + lane < in) call.x[first + 32 * k + lane] = e[k];
    }
}
#endif

// Stages columns `begin` to `end` of x (whole tiles; `begin` a multiple of SPAN), normalised and rotated as the call says.
// D is 1, 2, 4 or 8.
__device__ __forceinline__ void stage_prepared(u32* stage, const Call& call, u32 begin, u32 end) {
    __shared__ __align__(16) f32 squares[WARPS];
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, in = call.cols, rotate = call.rotate;
    const bool norm = call.weight;
    bool summed = !norm; // whether `scale` includes the norm
    u32 first = begin + warp * SPAN;
    f32 scale = rotate ? rsqrtf((f32)rotate) : 1.f, e[SPAN_EACH], w[SPAN_EACH]; // w: the norm's weights, or the next span
    u32 signs = 0;
#ifdef PQ_ADDED_NORM
    load_span(e, call.added_weight ? call.added : call.x, first, in);
    if (call.added_weight) add_norm(e, call, first);
#else
    load_span(e, call.x, first, in);
#endif
    load_span(w, norm ? call.weight : call.x, norm ? first : first + ROUND, in);
    if (norm && rotate) signs = signs_of(first);
    if (norm) {
        f32 sum = 0.f;
#pragma unroll
        for (u32 k = 0; k < SPAN_EACH; k++) sum += e[k] * e[k];
        if (begin || in > ROUND) {
            for (u32 i = threadIdx.x; i < in; i += THREADS) {
                if (i - begin >= ROUND) sum += call.x[i] * call.x[i];
            }
        }
        sum = warp_sum(sum);
        if (lane == 0) squares[warp] = sum;
        __syncwarp();
        // Warps with elements synchronize after the rotation, which hides the wait for the other warps' sums.
        if (first >= end) meet();
    }
#pragma unroll 1
    for (; first < end; first += ROUND) {
        if (norm) {
            const f32 offset = call.weight_offset;
#pragma unroll
            for (u32 k = 0; k < SPAN_EACH; k++) {
                e[k] *= __uint_as_float(__float_as_uint(w[k] + offset) ^ (signs << (31 - k) & 0x80000000u));
            }
        }
        hadamard_span(e, reinterpret_cast<f32*>(stage + (first - begin) / SPAN * SPAN_WORDS), rotate);
        if (!summed) {
            meet();
            scale *= rsqrtf(total_of(squares) / in + call.eps);
            summed = true;
        }
        const u32 n = (first - begin + lane * SPAN_EACH) / 8;
        store_pairs(staged_at<PITCH>(stage, n), e, scale);
        store_pairs(staged_at<PITCH>(stage, n + 1), e + 8, scale);
        const u32 i = first + lane * SPAN_EACH;
        if (call.prepared && i / SPAN_EACH % real_grid() == real_block()) {
#pragma unroll
            for (u32 k = 0; k < SPAN_EACH; k++) {
                if (i + k < in) call.prepared[i + k] = e[k] * scale;
            }
        }
        if (norm) {
            load_span(e, call.x, first + ROUND, in);
            load_span(w, call.weight, first + ROUND, in);
            if (rotate && first + ROUND < end) signs = signs_of(first + ROUND);
        } else {
#pragma unroll
            for (u32 k = 0; k < SPAN_EACH; k++) e[k] = w[k];
            load_span(w, call.x, first + 2 * ROUND, in);
        }
    }
}

// ---- The product and its sums ----

KERNEL pq_row(const Call& call) {
    const u32 out = call.out, code_tiles = call.code_tiles, paired = call.paired;
    char* table = table_start();
    f32* partials = reinterpret_cast<f32*>(table + TABLE_BYTES); // two of [WARPS, SUMS]
    u32* stage = reinterpret_cast<u32*>(partials + 2 * WARPS * SUMS);
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 row_tiles = (out + TILE_ROWS - 1) / TILE_ROWS, half = row_tiles >> 1;
    const u32 shared_out = row_tiles >> paired;
    const u32 first = shared_out * real_block() / real_grid();
    const u32 count = (shared_out * (real_block() + 1) / real_grid() - first) << paired;
    auto tile_of = [&](u32 j) { return first + (j >> paired) + (j & paired) * half; };

    // A warp iterates over chunks of columns, AT_ONCE row tiles of each, PASSES passes over the chunk's columns of each. A
    // unit is one of an iteration's UNITS tiles of codes: its codes for the next iteration are loaded as soon as the current
    // ones are used up. The address `at` only advances: neighbouring row tiles are `apart`, the next AT_ONCE `onward`.
    const u32 chunk = call.chunk_passes * WARPS;
    const u64 row_words = (u64)code_tiles * TILE_WORDS;
    const u64 apart = row_words * (paired ? half : 1), onward = row_words * (paired ? 1 : AT_ONCE);
    const u32* codes = call.codes + first * row_words;
    struct { u32 begin, end, tile, kt; const u32* at; } ahead = {0, min(chunk, code_tiles), 0, warp, codes + warp * TILE_WORDS};
    u32 units[UNITS][BITS] = {};
    auto fetch = [&](u32 unit) {
        const u32 k = unit % AT_ONCE, p = unit / AT_ONCE;
        const bool there = ahead.tile + k < count && ahead.kt + p * WARPS < ahead.end;
        if (there) load_tile(units[unit], ahead.at + (k ? apart : 0) + p * WARPS * TILE_WORDS, lane);
        if (unit < UNITS - 1) return;
        ahead.kt += PASSES * WARPS, ahead.at += PASSES * WARPS * TILE_WORDS;
        if (ahead.kt - warp < ahead.end) return;
        ahead.tile += AT_ONCE, ahead.at += onward - (u64)((ahead.kt - ahead.begin - warp) * TILE_WORDS);
        ahead.kt = ahead.begin + warp;
        if (ahead.tile < count || ahead.end == code_tiles) return;
        ahead.tile = 0, ahead.begin = ahead.end, ahead.end = min(ahead.end + chunk, code_tiles);
        ahead.kt = ahead.begin + warp, ahead.at = codes + ahead.kt * TILE_WORDS;
    };
    auto fetch_first = [&]() {
#pragma unroll
        for (u32 unit = 0; unit < UNITS; unit++) fetch(unit);
        if (call.weight && call.rotate) signs_of(warp * SPAN);
    };
    // Warp 0 polls the grid barrier, so it loads its codes after it: no load may delay the poll.
    if (warp) fetch_first();
    const u32 other = THREADS - 1 - threadIdx.x;
    if (call.weight && other * 32 < call.cols) prefetch_l2(call.weight + other * 32);
    if (call.scales && other < count) prefetch_l2(call.scales + tile_of(other) * TILE_ROWS);
    use_table(table, call.codebook);
    wait_inputs();
    if (!warp) fetch_first();

    const u32 low = lane_offset(lane);
    u32 parity = 0;
#pragma unroll 1
    for (u32 begin = 0; begin < code_tiles; begin += chunk) {
        const u32 end = min(begin + chunk, code_tiles);
        if (begin) __syncthreads(); // all warps have read the stage and the sums
        if (call.prepare) {
            stage_prepared(stage, call, begin * COLUMNS_OF_TILE, end * COLUMNS_OF_TILE);
        } else {
            stage_row<PITCH, 4>(stage, call.x, call.cols, begin, end - begin);
        }
        __syncthreads();
        // x of up to PASSES passes stays in registers; more are reloaded for every tile.
        const bool several = end - begin > PASSES * WARPS;
        u32 b[PASSES][NT][STEPS][2] = {};
#pragma unroll 1
        for (u32 batch = 0; batch < count; batch += BATCH) {
            const u32 tiles = min(BATCH, count - batch);
            f32* partial = partials + parity * WARPS * SUMS;
            parity ^= 1;
#pragma unroll 1
            for (u32 tile = 0; tile < tiles; tile += AT_ONCE) {
                f32 acc[AT_ONCE][NT][4] = {};
#pragma unroll 1
                for (u32 pass = begin; pass < end; pass += PASSES * WARPS) {
#pragma unroll
                    for (u32 p = 0; p < PASSES; p++) {
                        const u32 kt = pass + p * WARPS + warp;
                        if (kt < end && (several || batch + tile == 0)) {
                            const u32* staged = stage + (kt - begin) * TILE_STAGE + (lane / 4 % 2 * 4 + lane % 4) * 4;
                            load_operand<PITCH>(b[p][0], staged);
                        }
#pragma unroll
                        for (u32 k = 0; k < AT_ONCE; k++) {
                            const u32 unit = p * AT_ONCE + k;
                            if (kt < end && tile + k < tiles) {
                                multiply_tile<TABLE_LOG, true>(acc[k], units[unit], b[p], low, [&](int) { return TABLE_AT; });
                            }
                            fetch(unit);
                        }
                    }
                }
#pragma unroll
                for (u32 k = 0; k < AT_ONCE; k++) {
                    store_sums(acc[k], lane, [&](u32, u32 r, f32 v) { partial[warp * SUMS + (tile + k) * TILE_ROWS + r] = v; });
                }
            }
            // Sums the batch over the warps, 4 threads a row of y. Scales, biases and residuals are loaded before the
            // barrier.
            struct Target { f32* y; f32 before[2], scale[2]; u32 row, n; };
            auto target = [&](u32 i) {
                const u32 r = paired ? i / TILE_ROWS * (2 * TILE_ROWS) + i % TILE_ROWS : i, j = batch + r / TILE_ROWS;
                Target to = {nullptr, {0.f, 0.f}, {1.f, 1.f}, r, tile_of(j) * TILE_ROWS + r % TILE_ROWS};
                if (lane % 4 || r >= tiles * TILE_ROWS || to.n >= out) return to;
                to.y = call.y + call.params.y_offset + to.n;
#pragma unroll
                for (u32 k = 0; k < 2; k++) {
                    if (k > paired) break;
                    const u32 n = to.n + k * half * TILE_ROWS;
                    if (call.scales) to.scale[k] = from_f16(call.scales[n]);
                    if (call.bias && begin == 0) to.before[k] = call.bias[n];
                }
                if (call.params.accumulate || begin) to.before[0] += *to.y;
                return to;
            };
            constexpr u32 AT_A_TIME = THREADS / 4, TURNS = BATCH_ROWS / AT_A_TIME;
            static_assert(BATCH_ROWS % AT_A_TIME == 0, "every row has its turn");
            constexpr bool WHOLE = BATCH_ROWS / 2 % AT_A_TIME == 0; // whether paired rows fill whole turns too
            Target rows[TURNS];
#pragma unroll
            for (u32 r = 0; r < TURNS; r++) rows[r] = target(r * AT_A_TIME + threadIdx.x / 4);
            if (call.next && batch + BATCH >= count && end == code_tiles) prefetch_next(call);
            __syncthreads();
#pragma unroll
            for (u32 r = 0; r < TURNS; r++) {
                const Target to = rows[r];
                if (r * AT_A_TIME + (WHOLE ? 0 : threadIdx.x / 4) >= BATCH_ROWS >> paired) break;
                f32 sums[2] = {};
#pragma unroll
                for (u32 k = 0; k < 2; k++) {
                    if (k > paired) break;
                    sums[k] = to.before[k] + sum_of_warps(partial + to.row + k * TILE_ROWS) * to.scale[k];
                }
                if (!to.y) continue;
                f32 v = paired ? activation(sums[0], call.gelu) * sums[1] : sums[0];
                if (call.with_signs) v *= rotation_sign(to.n);
                *to.y = v;
            }
        }
    }
}
