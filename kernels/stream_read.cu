// Reads `count` 16-byte words once, past L1 as weights are read: the bandwidth that memory gives at best, 4.4-4.5 TB/s on
// an H200. The sum is written only so that the compiler keeps the reads.
KERNEL __launch_bounds__(1024) stream_read(const uint4* x, u32* sink, u64 count) {
    u32 sum = 0;
    const u64 step = (u64)gridDim.x * blockDim.x;
#pragma unroll 8
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const uint4 v = load_stream(x + i);
        sum += v.x ^ v.y ^ v.z ^ v.w;
    }
    if (sum == 0x12345678u) *sink = sum;
}
