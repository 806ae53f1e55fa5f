// The k largest values of a row with their indices, largest first, the lower index among equals: what top-k sampling needs
// of the logits, instead of all of them. One block, radix selection: each value and its index form a unique 64-bit key, and
// each pass over the row fixes 8 of the k-th key's bits, until a digit separates exactly k.
// Bound: latency of the passes; a row of 128,256 takes 4 through L2 unless many values are equal.

// The largest k.
constexpr u32 MOST = TOP_K, THREADS = 1024;

// A key that grows with the value and falls with the index. NaN is above all, so that the sampler sees it.
__device__ __forceinline__ u64 key_of(f32 value, u32 position) {
    const u32 bits = __float_as_uint(value + 0.f);
    const u32 ordered = value != value ? ~0u : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)ordered << 32 | (u32)~position;
}

// Grid: (1). `found` gets k indices, then k values; k is at most MOST and dim.
KERNEL BOUNDS(THREADS) top_k(const f32* x, u32* found, u32 dim, u32 k) {
    __shared__ u32 counts[256], left, digit;
    __shared__ bool exact;
    __shared__ u64 keys[MOST];
    wait_inputs();
    u64 prefix = 0;
    u32 shift = 64, need = k;
    // Above `shift` the k-th largest key has the bits of `prefix`; `need` of the keys that share them are wanted.
    do {
        shift -= 8;
        if (threadIdx.x < 256) counts[threadIdx.x] = 0;
        __syncthreads();
        for (u32 i = threadIdx.x; i < dim; i += THREADS) {
            const u64 key = key_of(x[i], i);
            if (shift == 56 || key >> (shift + 8) == prefix) atomicAdd(counts + (key >> shift & 255), 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            u32 d = 255, above = need;
            while (counts[d] < above) above -= counts[d--];
            digit = d, left = above, exact = counts[d] == above;
        }
        __syncthreads();
        prefix = prefix << 8 | digit, need = left;
    } while (!exact && shift);
    __syncthreads();
    if (threadIdx.x == 0) left = 0;
    keys[threadIdx.x] = 0;
    __syncthreads();
    for (u32 i = threadIdx.x; i < dim; i += THREADS) {
        const u64 key = key_of(x[i], i);
        if (key >> shift >= prefix) keys[atomicAdd(&left, 1)] = key;
    }
    // Bitonic sort, descending.
    for (u32 size = 2; size <= MOST; size *= 2) {
        for (u32 apart = size / 2; apart; apart /= 2) {
            __syncthreads();
            const u32 other = threadIdx.x ^ apart;
            if (other > threadIdx.x) {
                const u64 a = keys[threadIdx.x], b = keys[other];
                if (((threadIdx.x & size) == 0) == (a < b)) keys[threadIdx.x] = b, keys[other] = a;
            }
        }
    }
    __syncthreads();
    if (threadIdx.x >= k) return;
    const u32 position = ~(u32)keys[threadIdx.x];
    found[threadIdx.x] = position, found[k + threadIdx.x] = __float_as_uint(x[position]);
}
