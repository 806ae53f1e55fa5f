// What every kernel's source has in common. Before it come the parameter structs of ops.rs, the constants of limits.rs
// and WORKGROUP, the kernel's invocations a workgroup; after it subgroup.wgsl or shared.wgsl (`Ids`, `workgroup_sum`).

// One slice, along `out`, of a weight [out, in].
struct Weight {
    // First row of the whole weight that is here.
    first: u32,
    rows: u32,
    cols: u32,
    // Words from one row to the next.
    stride: u32,
    // Streams of 32 codes in a row: subspace j is code j / chunks of stream j % chunks, and word w of stream c is the
    // row's word w * chunks + c, so that neighbouring invocations read neighbouring words.
    chunks: u32,
    // Subspaces that share a codebook.
    group: u32,
    // Block of the rotation that the rows are stored with, 0 for none.
    rotate: u32,
    pad: u32,
}

fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

fn silu(x: f32) -> f32 {
    return x / (1.0 + exp(-x));
}

// The two f16 of a word.
fn unpack_f16(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}

// The two bf16 of a word.
fn unpack_bf16(word: u32) -> vec2<f32> {
    return vec2<f32>(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// The rotation's sign of element i (pq/rotate.rs).
fn sign_of(i: u32) -> f32 {
    var h = i ^ 0x9e3779b9u;
    h = (h ^ (h >> 16u)) * 0x85ebca6bu;
    h = (h ^ (h >> 13u)) * 0xc2b2ae35u;
    return select(1.0, -1.0, ((h ^ (h >> 16u)) & 1u) == 1u);
}

var<workgroup> block: array<f32, MAX_BLOCK>;

// Hadamard transform, not normalised, of four elements.
fn butterflies(v: vec4<f32>) -> vec4<f32> {
    let w = vec4<f32>(v.xy + v.zw, v.xy - v.zw);
    return vec4<f32>(w.x + w.y, w.x - w.y, w.z + w.w, w.z - w.w);
}

// Hadamard transform, not normalised, of the `size` elements of each block among the first `count` of `block`: three
// steps between two barriers while three are left, because a barrier costs more than a step.
fn hadamard(local: u32, count: u32, size: u32) {
    var half = 1u;
    for (; 8u * half <= size; half <<= 3u) {
        workgroupBarrier();
        for (var p = local; 8u * p < count; p += WORKGROUP) {
            let i = ((p & ~(half - 1u)) << 3u) | (p & (half - 1u));
            let a = vec4<f32>(block[i], block[i + half], block[i + 2u * half], block[i + 3u * half]);
            let j = i + 4u * half;
            let b = vec4<f32>(block[j], block[j + half], block[j + 2u * half], block[j + 3u * half]);
            let low = butterflies(a + b);
            let high = butterflies(a - b);
            block[i] = low.x;
            block[i + half] = low.y;
            block[i + 2u * half] = low.z;
            block[i + 3u * half] = low.w;
            block[j] = high.x;
            block[j + half] = high.y;
            block[j + 2u * half] = high.z;
            block[j + 3u * half] = high.w;
        }
    }
    for (; half < size; half <<= 1u) {
        workgroupBarrier();
        for (var p = local; 2u * p < count; p += WORKGROUP) {
            let i = ((p & ~(half - 1u)) << 1u) | (p & (half - 1u));
            let a = block[i];
            let b = block[i + half];
            block[i] = a + b;
            block[i + half] = a - b;
        }
    }
    workgroupBarrier();
}

// Rotates the first `count` elements of `block`, to which the caller has applied `sign_of` where `rotate` is not 0.
// Returns the factor that normalises them.
fn rotate_block(local: u32, count: u32, rotate: u32) -> f32 {
    if (rotate == 0u) {
        return 1.0;
    }
    hadamard(local, count, rotate);
    return inverseSqrt(f32(rotate));
}
