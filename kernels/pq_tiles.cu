// Codes of a file brought into the device's layout (pq_tile.cuh). Bound by the memory of the codes, once for each weight.

// Rows of packed codes of `bits` bits each, as a file has them, in tiles: a thread a code, by atomic OR into zeroed tiles.
KERNEL pq_tiles(const unsigned char* rows, u32* tiles, u32 first, u32 count, u32 subspaces, u32 row_bytes, u32 code_tiles,
                u32 bits) {
    constexpr u32 LANE_CODES = TILE_CODES / 4;
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u32 n = i / subspaces, j = i % subspaces;
    if (n >= count) return;
    const u64 bit = (u64)j * bits;
    const unsigned char* at = rows + (u64)n * row_bytes + bit / 8;
    u32 raw = 0;
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        if (bit / 8 + k < row_bytes) raw |= (u32)at[k] << (8 * k);
    }
    const u32 code = (raw >> (bit % 8)) & ((1u << bits) - 1u);
    const u32 row = first + n, lane = (row % 8) * 4 + (j % TILE_CODES) / LANE_CODES;
    const u32 at_lane = (row % TILE_ROWS) / 8 * LANE_CODES + j % LANE_CODES;
    u32* tile = tiles + ((u64)(row / TILE_ROWS) * code_tiles + j / TILE_CODES) * bits * 32;
    auto add = [&](u32 word, u32 value) { atomicOr(tile + tile_word(bits, lane, word), value); };
    if (bits == 6) {
        const u32 word = at_lane / LANE_CODES * 3, c = at_lane % LANE_CODES, shift = c % 4 * 8;
        if (c < 12) {
            add(word + c / 4, code << shift);
        } else {
#pragma unroll
            for (u32 k = 0; k < 3; k++) add(word + k, (code >> 2 * k & 3) << (shift + 6));
        }
        return;
    }
    const u32 to = at_lane * bits;
    add(to / 32, code << (to % 32));
    if (to % 32 + bits > 32) add(to / 32 + 1, code >> (32 - to % 32));
}
