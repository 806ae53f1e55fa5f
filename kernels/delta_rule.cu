// The gated delta rule, row by row (formulas: src/backend/cpu/delta_rule.rs). Grid: (value_dim / 32, value_heads, segments).
// A column of S needs no other column: LANES lanes hold a column, KEY_DIM / LANES elements each, in registers through all
// rows of a segment. That costs two shuffled sums a row and no barrier. Eight columns a warp make every access to S a whole
// 32-byte sector. The next row is loaded meanwhile.
// Bound: latency. H200, qwen3.5-9b: 4.6 us for one row; from 16 rows on delta_chunks.cu is faster. Versions:
// docs/log/cuda-prefill.md.

constexpr int LANES = 4, EACH = (KEY_DIM + LANES - 1) / LANES;

__device__ __forceinline__ f32 group_sum(f32 v) {
#pragma unroll
    for (int o = LANES / 2; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o * 8);
    return v;
}

KERNEL delta_rule(const f32* qkv, const f32* proj, const f32* a_log, const f32* dt_bias, const u32* segments,
                  f32* state, f32* y, DeltaRuleParams params) {
    release_next();
    wait_inputs();
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 column = blockIdx.x * 32 + warp * 8 + lane % 8, part = lane / 8;
    const u32 head = blockIdx.y, key_head = head / (params.value_heads / params.key_heads);
    const u32* segment = segments + blockIdx.z * 4;
    const u32 slot = segment[0], first = segment[1], rows = segment[2];
    const bool fresh = segment[3] == 0, inside = column < params.value_dim;
    const u32 keys = params.key_heads * KEY_DIM, values = params.value_heads * params.value_dim;
    f32* s_at = state + ((u64)slot * params.value_heads + head) * KEY_DIM * params.value_dim + column;
    const f32 decay = -expf(a_log[head]), bias = dt_bias[head];

    f32 s[EACH];
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const u32 key = part * EACH + i;
        s[i] = !fresh && inside && key < KEY_DIM ? s_at[(u64)key * params.value_dim] : 0.f;
    }
    struct Row { f32 q[EACH], k[EACH], v, a, b; };
    auto load = [&](u32 r) {
        Row at;
        const f32* row = qkv + (u64)r * (2 * keys + values);
        const f32* q_at = row + key_head * KEY_DIM;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            const u32 key = part * EACH + i;
            at.q[i] = key < KEY_DIM ? q_at[key] : 0.f;
            at.k[i] = key < KEY_DIM ? q_at[keys + key] : 0.f;
        }
        at.v = inside ? row[2 * keys + head * params.value_dim + column] : 0.f;
        at.a = proj[(u64)r * params.stride + params.a_offset + head];
        at.b = proj[(u64)r * params.stride + params.b_offset + head];
        return at;
    };
    Row next = load(first);
    for (u32 r = first; r < first + rows; r++) {
        Row now = next;
        if (r + 1 < first + rows) next = load(r + 1);
        f32(&q)[EACH] = now.q, (&k)[EACH] = now.k, qq = 0.f, kk = 0.f;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            qq += q[i] * q[i];
            kk += k[i] * k[i];
        }
        const f32 v = now.v, a = now.a + bias, beta = sigmoid(now.b);
        const f32 softplus = a > 20.f ? a : log1pf(expf(a));
        const f32 gain = expf(decay * softplus);
        const f32 q_scale = rsqrtf(group_sum(qq) + 1e-6f) * rsqrtf((f32)KEY_DIM);
        const f32 k_scale = rsqrtf(group_sum(kk) + 1e-6f);
        f32 read = 0.f;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            s[i] *= gain;
            k[i] *= k_scale;
            read += s[i] * k[i];
        }
        const f32 error = beta * (v - group_sum(read));
        f32 out = 0.f;
#pragma unroll
        for (int i = 0; i < EACH; i++) {
            s[i] += k[i] * error;
            out += s[i] * q[i];
        }
        out = group_sum(out) * q_scale;
        if (inside && part == 0) y[(u64)r * values + head * params.value_dim + column] = out;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        const u32 key = part * EACH + i;
        if (inside && key < KEY_DIM) s_at[(u64)key * params.value_dim] = s[i];
    }
}
