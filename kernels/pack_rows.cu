// Packs rows of x as f16 in the order of mma.sync's B operand for pq_matmul_tiles and pq_rows: [code tile][8 columns] [PAIRS
// / 4][lane] x 16 bytes. Lane (g, t) holds, of column g, the inputs that codes 16t .. 16t+15 of the tile multiply, so that a
// warp's loads are 512 contiguous bytes. A column is a row of x, or, with `split`, a row's f16 and the next column its f16
// remainder. Columns without a row and inputs beyond `in` are zero. A thread 16 bytes.
// Bound: memory.
KERNEL pack_rows(const f32* x, uint4* packed, u32 rows, u32 in, u32 groups, u32 count, u32 split) {
    release_next();
    wait_inputs();
    const u32 index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= count) return;
    constexpr u32 PIECES = PAIRS / 4;
    const u32 lane = index % 32, piece = index / 32 % PIECES, group = index / 32 / PIECES % groups;
    const u32 tile = index / 32 / PIECES / groups, column = group * 8 + lane / 4, row = split ? column / 2 : column;
    const u32 code = tile * TILE_CODES + lane % 4 * LANE_CODES + piece * (8 / ENTRY);
    f32 v[8];
#pragma unroll
    for (u32 i = 0; i < 8; i++) {
        const u32 element = i % ENTRY, at = (code + i / ENTRY) * D + element;
        v[i] = row < rows && element < D && at < in ? x[(u64)row * in + at] : 0.f;
    }
    u32 words[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        words[i] = pack_f16(v[2 * i], v[2 * i + 1]);
        if (split && column % 2) words[i] = pack_f16(v[2 * i] - low_f16(words[i]), v[2 * i + 1] - high_f16(words[i]));
    }
    packed[index] = make_uint4(words[0], words[1], words[2], words[3]);
}
