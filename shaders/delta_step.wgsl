// causal_conv, delta_rule and gated_norm in one, for segments of one row (decode). Workgroup: HEADS value heads (x) of
// segment y, which are all that read their query and key heads, and whole blocks of the output's rotation: no other
// workgroup reads the states that it updates. `proj` holds what the convolution reads, the gates, a and b.
//
// S is read twice, first for S^T k and S^T q together: y = decay S^T q + (k . q) e needs nothing else of the new S.
// Bound by latency: a workgroup has a whole block of heads, so there are few of them, and only many reads at once
// bring S in time: 32 for each column. qwen3.5-9b on an H200: 206 tok/s, 155 with three kernels instead.

override HEADS: u32;
override KEY_HEADS: u32;
override KEY_DIM: u32;
override VALUE_DIM: u32;
// QUERIES + COLUMNS, see below: constants of a pipeline do not compute array sizes everywhere.
override CHANNELS: u32;

@group(0) @binding(0) var<uniform> conv: CausalConvParams;
@group(0) @binding(1) var<uniform> params: DeltaRuleParams;
@group(0) @binding(2) var<uniform> norm: GatedNormParams;
@group(0) @binding(3) var<uniform> a_log: array<vec4<f32>, MAX_VALUE_HEADS / 4u>; // [value_heads]
@group(0) @binding(4) var<uniform> dt_bias: array<vec4<f32>, MAX_VALUE_HEADS / 4u>; // [value_heads]
@group(0) @binding(5) var<storage, read> proj: array<f32>; // [rows, stride]
@group(0) @binding(6) var<storage, read> taps: array<f32>; // [channels, kernel]
@group(0) @binding(7) var<storage, read> weight: array<f32>; // [value_dim]
@group(0) @binding(8) var<storage, read> segments: array<vec4<u32>>; // [segments]: slot, row, 1, position
@group(0) @binding(9) var<storage, read_write> past: array<f32>; // [slots, channels, kernel - 1]
@group(0) @binding(10) var<storage, read_write> state: array<f32>; // S [slots, value_heads, key_dim, value_dim]
@group(0) @binding(11) var<storage, read_write> y: array<f32>; // [rows, value_heads * value_dim]

// Invocations that share a sum over a head.
const PARTS = 16u;

// What the convolution gives: queries and keys, [2, KEY_HEADS, KEY_DIM], and values, [HEADS, VALUE_DIM].
var<workgroup> row: array<f32, CHANNELS>;
// Of each key head q . q, k . k and q . k, then of each value head y . y: in PARTS.
var<workgroup> products: array<f32, MAX_PRODUCTS * PARTS>;

fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + log(1.0 + exp(-abs(x)));
}

fn product(i: u32) -> f32 {
    var sum = 0.0;
    for (var part = 0u; part < PARTS; part++) {
        sum += products[i * PARTS + part];
    }
    return sum;
}

// The convolution of one channel of a row, its state updated.
fn convolved(segment: vec4<u32>, channel: u32) -> f32 {
    let before = conv.kernel - 1u;
    let kept = (segment.x * conv.channels + channel) * before;
    let now = proj[segment.y * conv.stride + channel];
    var sum = taps[channel * conv.kernel + before] * now;
    for (var i = 0u; i < before; i++) {
        let v = select(past[kept + i], 0.0, segment.w == 0u);
        sum += taps[channel * conv.kernel + i] * v;
        if (i > 0u) {
            past[kept + i - 1u] = v;
        }
    }
    if (before > 0u) {
        past[kept + before - 1u] = now;
    }
    return silu(sum);
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let segment = segments[group.y];
    let fresh = segment.w == 0u;
    let keys = params.key_heads * params.key_dim;
    let queries = KEY_HEADS * KEY_DIM;
    let columns = HEADS * VALUE_DIM;
    let first = group.x * columns;
    for (var i = ids.local; i < CHANNELS; i += WORKGROUP) {
        var channel = group.x * queries + i;
        if (i >= 2u * queries) {
            channel = 2u * keys + first + i - 2u * queries;
        } else if (i >= queries) {
            channel += keys - queries;
        }
        row[i] = convolved(segment, channel);
    }
    workgroupBarrier();
    for (var p = ids.local; p < 3u * KEY_HEADS * PARTS; p += WORKGROUP) {
        let kind = p / PARTS % 3u;
        let head = p / PARTS / 3u * KEY_DIM;
        let a = head + select(0u, queries, kind == 1u);
        let b = head + select(queries, 0u, kind == 0u);
        var sum = 0.0;
        for (var i = p % PARTS; i < KEY_DIM; i += PARTS) {
            sum += row[a + i] * row[b + i];
        }
        products[p] = sum;
    }
    workgroupBarrier();
    for (var column = ids.local; column < columns; column += WORKGROUP) {
        let local_head = column / VALUE_DIM;
        let head = group.x * HEADS + local_head;
        let key_head = local_head / (HEADS / KEY_HEADS);
        let q = key_head * KEY_DIM;
        let k = queries + q;
        let q_scale = 1.0 / sqrt((product(3u * key_head) + 1e-6) * f32(KEY_DIM));
        let k_scale = 1.0 / sqrt(product(3u * key_head + 1u) + 1e-6);
        let gate = segment.y * params.stride + head;
        let rate = -exp(a_log[head / 4u][head % 4u]);
        let decay = exp(rate * softplus(proj[gate + params.a_offset] + dt_bias[head / 4u][head % 4u]));
        let beta = sigmoid(proj[gate + params.b_offset]);
        let s = (segment.x * params.value_heads + head) * KEY_DIM * VALUE_DIM + column % VALUE_DIM;
        var by_k = 0.0;
        var by_q = 0.0;
        if (!fresh) {
            for (var start = 0u; start < KEY_DIM; start += 32u) {
                for (var n = 0u; n < 32u; n++) { // unroll 32
                    let i = start + n;
                    if (KEY_DIM % 32u == 0u || i < KEY_DIM) {
                        let v = state[s + i * VALUE_DIM];
                        by_k += v * row[k + i];
                        by_q += v * row[q + i];
                    }
                }
            }
        }
        let e = beta * (row[2u * queries + column] - decay * k_scale * by_k);
        for (var start = 0u; start < KEY_DIM; start += 32u) {
            var before: array<f32, 32>;
            for (var n = 0u; n < 32u; n++) { // unroll 32
                if (KEY_DIM % 32u == 0u || start + n < KEY_DIM) {
                    before[n] = state[s + (start + n) * VALUE_DIM];
                }
            }
            for (var n = 0u; n < 32u; n++) { // unroll 32
                let i = start + n;
                if (KEY_DIM % 32u == 0u || i < KEY_DIM) {
                    state[s + i * VALUE_DIM] = select(before[n] * decay, 0.0, fresh) + row[k + i] * (k_scale * e);
                }
            }
        }
        row[2u * queries + column] = q_scale * (decay * by_q + product(3u * key_head + 2u) * k_scale * e);
    }
    workgroupBarrier();
    for (var p = ids.local; p < HEADS * PARTS; p += WORKGROUP) {
        var sum = 0.0;
        for (var i = p % PARTS; i < VALUE_DIM; i += PARTS) {
            let v = row[2u * queries + p / PARTS * VALUE_DIM + i];
            sum += v * v;
        }
        products[p] = sum;
    }
    workgroupBarrier();
    let rotated = norm.rotate != 0u;
    for (var i = ids.local; i < columns; i += WORKGROUP) {
        let scale = 1.0 / sqrt(product(i / VALUE_DIM) / f32(VALUE_DIM) + norm.eps);
        let gate = silu(proj[segment.y * norm.stride + norm.offset + first + i]);
        let v = weight[i % VALUE_DIM] * (row[2u * queries + i] * scale) * gate;
        block[i] = v * select(1.0, sign_of(first + i), rotated);
    }
    let scale = rotate_block(ids.local, columns, norm.rotate);
    for (var i = ids.local; i < columns; i += WORKGROUP) {
        y[segment.y * params.value_heads * VALUE_DIM + first + i] = scale * block[i];
    }
}
