// How a warp's lanes share heads of keys and values, for attention of few rows: a head is LANES lanes of EACH elements.
// Constants: HEAD_DIM, CACHE_F16.

constexpr int EACH = 8;
constexpr int PARTS = (HEAD_DIM + EACH - 1) / EACH;
constexpr int LANES = PARTS <= 1 ? 1 : PARTS <= 2 ? 2 : PARTS <= 4 ? 4 : PARTS <= 8 ? 8 : PARTS <= 16 ? 16 : 32;
constexpr int POSITIONS = 32 / LANES;
constexpr f32 LOG2E = 1.4426950408889634f, LOWEST = -1e30f;

// A lane's elements of a key or value as they lie in the cache.
struct Raw {
#ifdef CACHE_F16
    u32 words[EACH / 2];
    __device__ __forceinline__ f32 operator[](int i) const { return i % 2 ? high_f16(words[i / 2]) : low_f16(words[i / 2]); }
#else
    f32 values[EACH];
    __device__ __forceinline__ f32 operator[](int i) const { return values[i]; }
#endif
};

__device__ __forceinline__ Raw load_head(const Cache* at, u32 first) {
    Raw raw = {};
    if constexpr (HEAD_DIM % EACH == 0) {
        if (LANES != PARTS && first >= HEAD_DIM) return raw;
#ifdef CACHE_F16
        const uint4 q = *reinterpret_cast<const uint4*>(at + first);
        raw.words[0] = q.x, raw.words[1] = q.y, raw.words[2] = q.z, raw.words[3] = q.w;
#else
#pragma unroll
        for (int i = 0; i < EACH; i += 4) {
            const float4 q = *reinterpret_cast<const float4*>(at + first + i);
            raw.values[i] = q.x, raw.values[i + 1] = q.y, raw.values[i + 2] = q.z, raw.values[i + 3] = q.w;
        }
#endif
    } else {
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            if (first + i >= HEAD_DIM) continue;
#ifdef CACHE_F16
            raw.words[i / 2] |= (u32)at[first + i] << (i % 2 * 16);
#else
            raw.values[i] = at[first + i];
#endif
        }
    }
    return raw;
}
