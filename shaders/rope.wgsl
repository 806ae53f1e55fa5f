// Norm and rotary position embedding of one head, for the kernels that need them. Uses `rope: RopeCacheParams`.

override HAS_NORMS: bool;
// Elements of the heads that a workgroup takes at a time.
override HEAD_ELEMENTS: u32;

var<workgroup> head: array<f32, HEAD_ELEMENTS>;
// Parts of the sums of squares: 16 of each of up to five heads.
var<workgroup> squares: array<f32, 80>;

// Sine and cosine of an angle of up to 2^18 radians. By hand, since a device's own may be off by 2^-11: reduced to one
// turn (exactly in the first two steps), then to an eighth of a turn either way, and there a Taylor series.
fn sin_cos(angle: f32) -> vec2<f32> {
    let turns = round(angle * 0.15915494309);
    let once = ((angle - turns * 6.28125) - turns * 0.00193023681640625) - turns * 5.070363386e-6;
    let quarters = round(once * 0.63661977237);
    let x = (once - quarters * 1.5707962513) - quarters * 7.549789949e-8;
    let xx = x * x;
    let sine = x * (1.0 + xx * (-1.0 / 6.0 + xx * (1.0 / 120.0 + xx * (-1.0 / 5040.0 + xx / 362880.0))));
    let cosine = 1.0 + xx * (-0.5 + xx * (1.0 / 24.0 + xx * (-1.0 / 720.0 + xx / 40320.0)));
    let quadrant = i32(quarters) & 3;
    let swapped = select(vec2<f32>(sine, cosine), vec2<f32>(cosine, sine), (quadrant & 1) == 1);
    return swapped * vec2<f32>(select(1.0, -1.0, quadrant >= 2), select(1.0, -1.0, quadrant == 1 || quadrant == 2));
}

// What queries at a position are multiplied by.
fn query_scale(position: u32) -> f32 {
    if (rope.query_beta == 0.0) {
        return 1.0;
    }
    return 1.0 + rope.query_beta * log(1.0 + floor(f32(position) / rope.query_context));
}

// Normalises the `count` heads in `head`, from number `keys` on with the keys' norm, and applies rotary embedding.
fn norm_and_rope(local: u32, count: u32, keys: u32, position: u32) {
    let dim = rope.head_dim;
    workgroupBarrier();
    if (HAS_NORMS) {
        for (var p = local; p < 16u * count; p += WORKGROUP) {
            var sum = 0.0;
            for (var i = p % 16u; i < dim; i += 16u) {
                let v = head[p / 16u * dim + i];
                sum += v * v;
            }
            squares[p] = sum;
        }
        workgroupBarrier();
        for (var i = local; i < count * dim; i += WORKGROUP) {
            let h = i / dim;
            var sum = 0.0;
            for (var p = 0u; p < 16u; p++) {
                sum += squares[16u * h + p];
            }
            var weight = q_norm[i % dim];
            if (h >= keys) {
                weight = k_norm[i % dim];
            }
            head[i] = (weight + rope.weight_offset) * (head[i] * (1.0 / sqrt(sum / f32(dim) + rope.eps)));
        }
        workgroupBarrier();
    }
    let half = rope.rotary_dim / 2u;
    for (var p = local; p < count * half; p += WORKGROUP) {
        let i = p / half * dim + p % half;
        let t = rope.amplitude * sin_cos(f32(position) * inv_freq[p % half]);
        let a = head[i];
        let b = head[i + half];
        head[i] = a * t.y - b * t.x;
        head[i + half] = b * t.y + a * t.x;
    }
    workgroupBarrier();
}
