// The gated delta rule. Workgroup: DELTA_COLUMNS columns of S of one value head (x: head, then tile) of segment y, row
// after row. Invocation: every SPLITS-th element of one column, which no other touches. Bound by latency: rows follow
// each other, and each reads and writes S.

const_assert WORKGROUP % DELTA_COLUMNS == 0u;
const SPLITS = WORKGROUP / DELTA_COLUMNS;

@group(0) @binding(0) var<uniform> params: DeltaRuleParams;
@group(0) @binding(1) var<storage, read> qkv: array<f32>; // [rows, 2 * key_heads * key_dim + value_heads * value_dim]
@group(0) @binding(2) var<storage, read> proj: array<f32>; // [rows, stride]
@group(0) @binding(3) var<storage, read> a_log: array<f32>; // [value_heads]
@group(0) @binding(4) var<storage, read> dt_bias: array<f32>; // [value_heads]
@group(0) @binding(5) var<storage, read> segments: array<vec4<u32>>; // [segments]: slot, first row, rows, position
@group(0) @binding(6) var<storage, read_write> state: array<f32>; // S [slots, value_heads, key_dim, value_dim]
@group(0) @binding(7) var<storage, read_write> y: array<f32>; // [rows, value_heads * value_dim]

var<workgroup> q: array<f32, MAX_KEY_DIM>;
var<workgroup> k: array<f32, MAX_KEY_DIM>;
var<workgroup> parts: array<f32, WORKGROUP>;

fn softplus(x: f32) -> f32 {
    return max(x, 0.0) + log(1.0 + exp(-abs(x)));
}

// The sum over the splits of a column.
fn column_sum(local: u32, part: f32) -> f32 {
    parts[local] = part;
    workgroupBarrier();
    var total = 0.0;
    for (var split = 0u; split < SPLITS; split++) {
        total += parts[split * DELTA_COLUMNS + local % DELTA_COLUMNS];
    }
    workgroupBarrier();
    return total;
}

@compute @workgroup_size(WORKGROUP)
fn main(ids: Ids, @builtin(workgroup_id) group: vec3<u32>) {
    let tiles = (params.value_dim + DELTA_COLUMNS - 1u) / DELTA_COLUMNS;
    let head = group.x / tiles;
    let column = (group.x % tiles) * DELTA_COLUMNS + ids.local % DELTA_COLUMNS;
    let in_use = column < params.value_dim;
    let split = ids.local / DELTA_COLUMNS;

    let segment = segments[group.y];
    let keys = params.key_heads * params.key_dim;
    let values = params.value_heads * params.value_dim;
    let key = (head / (params.value_heads / params.key_heads)) * params.key_dim;
    let s = (segment.x * params.value_heads + head) * params.key_dim * params.value_dim + column;
    let rate = -exp(a_log[head]);

    for (var r = segment.y; r < segment.y + segment.z; r++) {
        let row = r * (2u * keys + values);
        var qq = 0.0;
        var kk = 0.0;
        for (var i = ids.local; i < params.key_dim; i += WORKGROUP) {
            q[i] = qkv[row + key + i];
            k[i] = qkv[row + keys + key + i];
            qq += q[i] * q[i];
            kk += k[i] * k[i];
        }
        let q_scale = 1.0 / sqrt((workgroup_sum(ids, qq) + 1e-6) * f32(params.key_dim));
        let k_scale = 1.0 / sqrt(workgroup_sum(ids, kk) + 1e-6);
        let decay = exp(rate * softplus(proj[r * params.stride + params.a_offset + head] + dt_bias[head]));
        let beta = sigmoid(proj[r * params.stride + params.b_offset + head]);
        let fresh = r == segment.y && segment.w == 0u;

        var read = 0.0;
        if (in_use && !fresh) {
            for (var start = split; start < params.key_dim; start += 16u * SPLITS) {
                for (var n = 0u; n < 16u; n++) { // unroll 16
                    let i = start + n * SPLITS;
                    let there = i < params.key_dim;
                    let at = select(split, i, there);
                    read += state[s + at * params.value_dim] * select(0.0, k[at], there);
                }
            }
        }
        let seen = column_sum(ids.local, read) * decay * k_scale;
        var out = 0.0;
        if (in_use) {
            let v = qkv[row + 2u * keys + head * params.value_dim + column];
            let e = beta * (v - seen) * k_scale;
            for (var start = split; start < params.key_dim; start += 16u * SPLITS) {
                var before: array<f32, 16>;
                for (var n = 0u; n < 16u; n++) { // unroll 16
                    before[n] = state[s + select(split, start + n * SPLITS, start + n * SPLITS < params.key_dim) * params.value_dim];
                }
                for (var n = 0u; n < 16u; n++) { // unroll 16
                    let i = start + n * SPLITS;
                    if (i < params.key_dim) {
                        let updated = select(before[n] * decay, 0.0, fresh) + k[i] * e;
                        state[s + i * params.value_dim] = updated;
                        out += updated * q[i];
                    }
                }
            }
        }
        let total = column_sum(ids.local, out) * q_scale;
        if (in_use && split == 0u) {
            y[r * values + head * params.value_dim + column] = total;
        }
    }
}
