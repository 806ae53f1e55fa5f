// The first index of the largest value of each row, NaN counting as larger than every number: argmax_part reduces
// ARGMAX_BLOCKS pieces of a row, argmax joins them.
// Bound: latency. H200, 128,256 values: 25 us with reading the result.

struct Top {
    f32 value;
    u32 position;
    __device__ __forceinline__ void join(f32 other, u32 at) {
        const bool same = other == value || (isnan(other) && isnan(value));
        if (same ? at < position : !isnan(value) && !(other < value)) value = other, position = at;
    }
    __device__ __forceinline__ void join_warp() {
#pragma unroll
        for (int o = 16; o; o >>= 1) join(__shfl_xor_sync(~0u, value, o), __shfl_xor_sync(~0u, position, o));
    }
};

// Grid: (ARGMAX_BLOCKS, rows); a value and an index a block.
KERNEL BOUNDS(256) argmax_part(const f32* x, f32* values, u32* positions, u32 dim) {
    __shared__ Top tops[8];
    release_next();
    wait_inputs();
    const f32* row = x + (u64)blockIdx.y * dim;
    Top top = {__int_as_float(0xff800000), ~0u};
#pragma unroll 8
    for (u32 i = blockIdx.x * 256 + threadIdx.x; i < dim; i += ARGMAX_BLOCKS * 256) top.join(row[i], i);
    top.join_warp();
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    if (threadIdx.x) return;
    for (int w = 1; w < 8; w++) top.join(tops[w].value, tops[w].position);
    values[blockIdx.y * ARGMAX_BLOCKS + blockIdx.x] = top.value;
    positions[blockIdx.y * ARGMAX_BLOCKS + blockIdx.x] = top.position;
}

// Grid: (rows), a warp. `found` gets an index and its value for each row.
KERNEL argmax(const f32* values, const u32* positions, u32* found) {
    release_next();
    wait_inputs();
    const u32 at = blockIdx.x * ARGMAX_BLOCKS + threadIdx.x;
    Top top = {values[at], positions[at]};
    top.join(values[at + 32], positions[at + 32]);
    top.join_warp();
    if (threadIdx.x) return;
    found[2 * blockIdx.x] = top.position, found[2 * blockIdx.x + 1] = __float_as_uint(top.value);
}
