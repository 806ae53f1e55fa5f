// Around the search of kmeans.cu: prepare rotates and scales a matrix's rows, row_errors sums the squared error, pack writes
// the codes in the file's layout. A block a row. Every sum that decides a byte runs in the order of src/pq/quantize.rs and
// no product is fused into a sum, so the bytes are the CPU's.
// Bound: memory, 11 bytes a weight: 20 ms for 8e9 weights on an H200, a twentieth of the copy from the host.

// What a row is divided by; the host uses the same numbers.
enum Scale { NONE = 0, RMS = 1, ABS_MAX = 2 };

__device__ __forceinline__ f32 load_weight(const void* source, u32 dtype, u64 i) {
    if (dtype == F32) return static_cast<const f32*>(source)[i];
    const u16 half = static_cast<const u16*>(source)[i];
    return dtype == F16 ? from_f16(half) : from_bf16(half);
}

// Elements rotated at a time: a multiple of every rotation block and of the eight partial sums.
constexpr u32 PIECE = 2048;

// Grid: (rows). `out` gets the rotated and scaled row, `squares` its sum of squares before scaling, `bad` the lowest row
// whose weights or scale are not all finite.
KERNEL BOUNDS(256) prepare(const void* source, f32* out, u16* scales, double* squares, u32* bad, u32 cols, u32 dtype,
                           u32 rotate, f32 norm, u32 scale) {
    __shared__ f32 piece[PIECE];
    __shared__ double sums[8];
    __shared__ f32 tops[256];
    wait_inputs();
    const u64 row = (u64)blockIdx.x * cols;
    double sum = 0;
    f32 top = 0;
    bool finite = true;
    for (u32 first = 0; first < cols; first += PIECE) {
        const u32 count = min(PIECE, cols - first);
        for (u32 i = threadIdx.x; i < count; i += 256) {
            const f32 w = load_weight(source, dtype, row + first + i);
            finite &= fabsf(w) <= 3.4028235e38f;
            piece[i] = rotate ? w * rotation_sign(first + i) : w;
        }
        __syncthreads();
        for (u32 half = 1; half < rotate; half *= 2) {
            for (u32 p = threadIdx.x; p < count / 2; p += 256) {
                const u32 i = (p & ~(half - 1)) + p;
                const f32 a = piece[i], b = piece[i + half];
                piece[i] = __fadd_rn(a, b), piece[i + half] = __fsub_rn(a, b);
            }
            __syncthreads();
        }
        for (u32 i = threadIdx.x; i < count; i += 256) {
            const f32 w = rotate ? __fmul_rn(piece[i], norm) : piece[i];
            piece[i] = w, out[row + first + i] = w;
            top = fmaxf(top, fabsf(w));
        }
        __syncthreads();
        if (threadIdx.x < 8) {
            for (u32 i = threadIdx.x; i < count; i += 8) {
                const double w = piece[i];
                sum = __dadd_rn(sum, __dmul_rn(w, w));
            }
        }
        __syncthreads();
    }
    if (threadIdx.x < 8) sums[threadIdx.x] = sum;
    tops[threadIdx.x] = top;
    finite = __syncthreads_and(finite);
    f32 of_row = 1;
    sum = 0;
    for (u32 i = 0; i < 8; i++) sum = __dadd_rn(sum, sums[i]);
    if (scale == RMS) of_row = (f32)__dsqrt_rn(__ddiv_rn(sum, (double)cols));
    if (scale == ABS_MAX) {
        for (u32 i = 0; i < 256; i++) top = fmaxf(top, tops[i]);
        of_row = __fdiv_rn(top, 3.f);
    }
    const u16 rounded = to_f16(of_row);
    if (threadIdx.x == 0) {
        scales[blockIdx.x] = rounded, squares[blockIdx.x] = sum;
        if (!finite || (rounded & 0x7c00) == 0x7c00) atomicMin(bad, blockIdx.x);
    }
    if (scale == NONE || !(from_f16(rounded) > 0)) return;
    const f32 inverse = __fdiv_rn(1.f, from_f16(rounded));
    for (u32 i = threadIdx.x; i < cols; i += 256) out[row + i] = __fmul_rn(out[row + i], inverse);
}

// Grid: (rows). `errors` gets the squared error of each row, in the matrix's units. codes `[rows, subspaces]`, centroids
// `[codebooks, k, d]`, `group` subspaces a codebook.
KERNEL BOUNDS(256) row_errors(const f32* weights, const u16* codes, const f32* centroids, const u16* scales,
                              const double* squares, double* errors, u32 cols, u32 d, u32 k, u32 group, u32 scale) {
    __shared__ double sums[256];
    wait_inputs();
    const u32 subspaces = (cols + d - 1) / d;
    const f32* row = weights + (u64)blockIdx.x * cols;
    double sum = 0;
    for (u32 j = threadIdx.x; j < subspaces; j += 256) {
        const f32* centroid = centroids + ((u64)(j / group) * k + codes[(u64)blockIdx.x * subspaces + j]) * d;
        f32 squared = 0;
        for (u32 i = 0; i < min(d, cols - j * d); i++) {
            const f32 e = __fsub_rn(row[j * d + i], centroid[i]);
            squared = __fadd_rn(squared, __fmul_rn(e, e));
        }
        sum += squared;
    }
    sums[threadIdx.x] = sum;
    for (u32 half = 128; half; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x) return;
    const double unit = scale == NONE ? 1 : from_f16(scales[blockIdx.x]);
    errors[blockIdx.x] = unit == 0 ? squares[blockIdx.x] : sums[0] * unit * unit;
}

// Grid: (rows). Packs each row's codes, `bits` each, lowest bits first.
KERNEL BOUNDS(256) pack(const u16* codes, unsigned char* out, u32 subspaces, u32 row_bytes, u32 bits) {
    wait_inputs();
    const u16* row = codes + (u64)blockIdx.x * subspaces;
    for (u32 at = threadIdx.x; at < row_bytes; at += 256) {
        u32 j = at * 8 / bits, byte = 0;
        for (int shift = (int)(j * bits) - (int)(at * 8); shift < 8 && j < subspaces; shift += bits, j++)
            byte |= shift < 0 ? row[j] >> -shift : (u32)row[j] << shift;
        out[(u64)blockIdx.x * row_bytes + at] = byte;
    }
}
