// Assignment of sub-vectors to their nearest centroids, and Lloyd's k-means on samples of them, for any number of codebooks:
// one for all subspaces, one for each, or one for a group. Sums run in the order of src/pq/{assign,kmeans,quantize}.rs and
// no product is fused into a sum, so codes and centroids have the CPU's bytes.
//
// Bound: arithmetic of the search, every vector against every centroid, 2d + 3 instructions each. All lanes read the same
// centroid from shared memory, for EACH vectors of a thread at once. H200, all of llama3-8b with copies: 1.5 s at
// 2-256@universal, 13.7 s at 2-256@subspace (with training). Figures: docs/log/quantizing.md.

constexpr u32 D = VECTOR;
// Words of a centroid in shared memory: its elements, then -|c|^2 / 2, padded to whole vector loads.
constexpr u32 WIDTH = D == 1 ? 2 : D <= 3 ? 4 : D <= 7 ? 8 : 12;
// Centroids in shared memory at a time, and vectors of a thread.
constexpr u32 TILE = 512, EACH = D <= 4 ? 4 : 2;
// The most vectors that a codebook is trained on.
constexpr u32 SAMPLE = 1 << 16;

// A matrix [rows, cols] with `books` codebooks of `group` subspaces each; the first `full` subspaces have d columns. Samples
// of neighbouring codebooks are `stride` vectors apart.
struct Shape {
    u32 rows, cols, subspaces, full, group, books, k, stride;

    // The number of subspaces that a codebook is trained on; a ragged one counts only where the codebook has no other.
    __device__ u32 members(u32 book) const {
        const u32 first = book * group;
        return max(min(first + group, full), first + 1) - first;
    }
    __device__ u32 vectors(u32 book) const { return (u32)min((u64)SAMPLE, (u64)rows * members(book)); }
};

// The nearest centroid of each vector: the largest x c - |c|^2 / 2, the lowest index among equals. All threads of the block
// take part.
__device__ __forceinline__ void search(const f32 (&x)[EACH][D], const f32* centroids, u32 k, u32 (&best)[EACH]) {
    __shared__ __align__(16) f32 table[TILE * WIDTH];
    f32 top[EACH];
#pragma unroll
    for (u32 v = 0; v < EACH; v++) top[v] = __int_as_float(0xff800000), best[v] = 0;
    for (u32 first = 0; first < k; first += TILE) {
        const u32 count = min(TILE, k - first);
        __syncthreads();
        for (u32 i = threadIdx.x; i < count; i += blockDim.x) {
            f32 norm = 0;
#pragma unroll
            for (u32 e = 0; e < D; e++) {
                const f32 c = centroids[(u64)(first + i) * D + e];
                table[i * WIDTH + e] = c, norm = __fadd_rn(norm, __fmul_rn(c, c));
            }
            table[i * WIDTH + D] = -__fmul_rn(norm, 0.5f);
        }
        __syncthreads();
#pragma unroll 4
        for (u32 i = 0; i < count; i++) {
            f32 row[WIDTH];
            if (WIDTH == 2) {
                const float2 both = reinterpret_cast<const float2*>(table)[i];
                row[0] = both.x, row[1] = both.y;
            } else {
#pragma unroll
                for (u32 e = 0; e < WIDTH; e += 4) {
                    const float4 four = *reinterpret_cast<const float4*>(table + i * WIDTH + e);
                    row[e] = four.x, row[e + 1] = four.y, row[e + 2] = four.z, row[e + 3] = four.w;
                }
            }
#pragma unroll
            for (u32 v = 0; v < EACH; v++) {
                f32 score = row[D];
#pragma unroll
                for (u32 e = 0; e < D; e++) score = __fadd_rn(score, __fmul_rn(x[v][e], row[e]));
                if (score > top[v]) top[v] = score, best[v] = first + i;
            }
        }
    }
}

// Assigns codes `[rows, subspaces]` to the whole sub-vectors of a prepared matrix. Grid: (books * chunks); a chunk is EACH *
// blockDim vectors of a codebook, row by row.
KERNEL BOUNDS(256) assign_rows(const f32* weights, const f32* centroids, u16* codes, Shape s) {
    wait_inputs();
    const u32 book = blockIdx.x % s.books, first = book * s.group;
    if (first >= s.full) return;
    const u32 members = min(s.group, s.full - first);
    const u64 count = (u64)s.rows * members, start = (u64)(blockIdx.x / s.books) * (EACH * blockDim.x);
    if (start >= count) return;
    f32 x[EACH][D];
    u64 place[EACH];
    u32 best[EACH];
#pragma unroll
    for (u32 v = 0; v < EACH; v++) {
        const u64 i = min(start + v * blockDim.x + threadIdx.x, count - 1);
        const u64 row = i / members;
        const u32 j = first + (u32)(i - row * members);
        place[v] = row * s.subspaces + j;
#pragma unroll
        for (u32 e = 0; e < D; e++) x[v][e] = weights[row * s.cols + j * D + e];
    }
    search(x, centroids + (u64)book * s.k * D, s.k, best);
#pragma unroll
    for (u32 v = 0; v < EACH; v++) {
        if (start + v * blockDim.x + threadIdx.x < count) codes[place[v]] = best[v];
    }
}

// Assigns the codes of a row's last sub-vector where it has fewer than d elements; only those count. Grid: (rows / 256).
KERNEL BOUNDS(256) assign_ragged(const f32* weights, const f32* centroids, u16* codes, Shape s) {
    wait_inputs();
    const u32 row = blockIdx.x * 256 + threadIdx.x, j = s.full;
    if (row >= s.rows) return;
    const f32* x = weights + (u64)row * s.cols + j * D;
    const f32* book = centroids + (u64)(j / s.group) * s.k * D;
    f32 top = __int_as_float(0xff800000);
    u32 best = 0;
    for (u32 i = 0; i < s.k; i++) {
        f32 score = 0;
        for (u32 e = 0; e < s.cols - j * D; e++) {
            const f32 c = book[(u64)i * D + e];
            score = __fadd_rn(score, __fmul_rn(c, __fsub_rn(x[e], __fmul_rn(0.5f, c))));
        }
        if (score > top) top = score, best = i;
    }
    codes[(u64)row * s.subspaces + j] = best;
}

// SplitMix64's output function (S. Vigna, public domain), as in src/pq/quantize.rs.
__device__ __forceinline__ u64 mix(u64 i) {
    u64 z = (i + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

// Copies each codebook's training vectors to `[books, stride, d]`: all of them, or a fixed random sample. Grid: (books *
// chunks of 256).
KERNEL BOUNDS(256) sample(const f32* weights, f32* vectors, Shape s) {
    wait_inputs();
    const u32 book = blockIdx.x % s.books, members = s.members(book);
    const u32 n = blockIdx.x / s.books * 256 + threadIdx.x;
    if (n >= s.vectors(book)) return;
    const u64 total = (u64)s.rows * members, i = total <= SAMPLE ? n : mix(n) % total, row = i / members;
    const u32 first = (book * s.group + (u32)(i - row * members)) * D;
#pragma unroll
    for (u32 e = 0; e < D; e++)
        vectors[((u64)book * s.stride + n) * D + e] = first + e < s.cols ? weights[row * s.cols + first + e] : 0;
}

// Scales the Gaussian codebook `start` to each dimension's mean and standard deviation in a sample. Grid: (books), a warp
// each; a lane sums one dimension, in order.
KERNEL fit(const f32* vectors, const f32* start, f32* centroids, Shape s) {
    __shared__ double moments[2][D];
    wait_inputs();
    const u32 book = blockIdx.x, count = s.vectors(book);
    if (threadIdx.x < D) {
        const f32* x = vectors + (u64)book * s.stride * D + threadIdx.x;
        double mean = 0, spread = 0;
#pragma unroll 8
        for (u32 n = 0; n < count; n++) mean = __dadd_rn(mean, (double)x[(u64)n * D]);
        mean = __ddiv_rn(mean, (double)count);
#pragma unroll 8
        for (u32 n = 0; n < count; n++) {
            const double e = __dsub_rn((double)x[(u64)n * D], mean);
            spread = __dadd_rn(spread, __dmul_rn(e, e));
        }
        moments[0][threadIdx.x] = mean, moments[1][threadIdx.x] = __dsqrt_rn(__ddiv_rn(spread, (double)count));
    }
    __syncwarp();
    for (u32 i = threadIdx.x; i < s.k * D; i += 32)
        centroids[(u64)book * s.k * D + i] =
            (f32)__dadd_rn(moments[0][i % D], __dmul_rn(moments[1][i % D], (double)start[i]));
}

// Assigns codes `[books, stride]` to the samples. Grid: (books * chunks).
KERNEL BOUNDS(256) assign_sample(const f32* vectors, const f32* centroids, u16* codes, Shape s) {
    wait_inputs();
    const u32 book = blockIdx.x % s.books, start = blockIdx.x / s.books * (EACH * blockDim.x);
    const u32 count = s.vectors(book);
    if (start >= count) return;
    f32 x[EACH][D];
    u32 best[EACH];
#pragma unroll
    for (u32 v = 0; v < EACH; v++) {
        const u32 n = min(start + v * blockDim.x + threadIdx.x, count - 1);
#pragma unroll
        for (u32 e = 0; e < D; e++) x[v][e] = vectors[((u64)book * s.stride + n) * D + e];
    }
    search(x, centroids + (u64)book * s.k * D, s.k, best);
#pragma unroll
    for (u32 v = 0; v < EACH; v++) {
        const u32 n = start + v * blockDim.x + threadIdx.x;
        if (n < count) codes[(u64)book * s.stride + n] = best[v];
    }
}

// Moves each centroid that has vectors to their mean. Grid: (books, ceil(k / blockDim)). A thread a centroid goes through
// all codes and adds its vectors in order.
KERNEL BOUNDS(256) update(const f32* vectors, const u16* codes, f32* centroids, u32* counts, Shape s) {
    constexpr u32 PIECE = 2048;
    __shared__ __align__(16) u32 tile[PIECE];
    wait_inputs();
    const u32 book = blockIdx.x, mine = blockIdx.y * blockDim.x + threadIdx.x, total = s.vectors(book);
    const f32* x = vectors + (u64)book * s.stride * D;
    double sums[D];
    u32 count = 0;
#pragma unroll
    for (u32 e = 0; e < D; e++) sums[e] = 0;
    for (u32 first = 0; first < total; first += PIECE) {
        __syncthreads();
        for (u32 i = threadIdx.x; i < PIECE; i += blockDim.x)
            tile[i] = first + i < total ? codes[(u64)book * s.stride + first + i] : ~0u;
        __syncthreads();
#pragma unroll 2
        for (u32 i = 0; i < min(PIECE, total - first); i += 4) {
            const uint4 four = *reinterpret_cast<const uint4*>(tile + i);
            const u32 found[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (u32 at = 0; at < 4; at++) {
                if (found[at] != mine) continue;
                count++;
#pragma unroll
                for (u32 e = 0; e < D; e++) sums[e] = __dadd_rn(sums[e], (double)x[(u64)(first + i + at) * D + e]);
            }
        }
    }
    if (mine >= s.k) return;
    counts[(u64)book * s.k + mine] = count;
    if (!count) return;
#pragma unroll
    for (u32 e = 0; e < D; e++)
        centroids[((u64)book * s.k + mine) * D + e] = (f32)__ddiv_rn(sums[e], (double)count);
}

// Moves the centroids without vectors, in order, to the vectors farthest from their centroids. Grid: (books).
KERNEL BOUNDS(256) reseed(const f32* vectors, const u16* codes, f32* centroids, const u32* counts, f32* errors, Shape s) {
    __shared__ u64 farthest[256];
    wait_inputs();
    const u32 book = blockIdx.x, total = s.vectors(book);
    const f32* x = vectors + (u64)book * s.stride * D;
    const u16* code = codes + (u64)book * s.stride;
    f32 *centroid = centroids + (u64)book * s.k * D, *error = errors + (u64)book * s.stride;
    bool measured = false;
    for (u32 slot = 0; slot < s.k; slot++) {
        if (counts[(u64)book * s.k + slot]) continue;
        if (!measured) {
            for (u32 n = threadIdx.x; n < total; n += 256) {
                f32 sum = 0;
#pragma unroll
                for (u32 e = 0; e < D; e++) {
                    const f32 off = __fsub_rn(x[(u64)n * D + e], centroid[(u64)code[n] * D + e]);
                    sum = __fadd_rn(sum, __fmul_rn(off, off));
                }
                error[n] = sum > 0 ? sum : 0;
            }
            measured = true;
        }
        // The largest error and the lowest vector among equals: first of each thread, then of the block.
        u64 top = 0;
        for (u32 n = threadIdx.x; n < total; n += 256) {
            const u64 key = (u64)__float_as_uint(error[n]) << 32 | ~n;
            if (error[n] > 0 && key > top) top = key;
        }
        farthest[threadIdx.x] = top;
        for (u32 half = 128; half; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) farthest[threadIdx.x] = max(farthest[threadIdx.x], farthest[threadIdx.x + half]);
        }
        __syncthreads();
        top = farthest[0];
        __syncthreads();
        if (!top) return;
        const u32 n = ~(u32)top;
        if (threadIdx.x < D) centroid[(u64)slot * D + threadIdx.x] = x[(u64)n * D + threadIdx.x];
        if (threadIdx.x == n % 256) error[n] = 0;
    }
}
