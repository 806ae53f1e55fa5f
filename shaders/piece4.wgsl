// Attention reads four neighbouring elements of a head at a time, and of up to four heads.
const PIECE = 4u;
alias Piece = vec4<f32>;
alias Heads = mat4x4<f32>;

// The products of four heads' weights with a piece.
fn outer(weights: vec4<f32>, v: Piece) -> Heads {
    return Heads(weights * v.x, weights * v.y, weights * v.z, weights * v.w);
}

// Element j of four heads.
fn of_element(m: Heads, j: u32) -> vec4<f32> {
    return m[j];
}

fn set_head(m: ptr<function, Heads>, j: u32, h: u32, v: f32) {
    (*m)[j][h] = v;
}

fn set_element(p: ptr<function, Piece>, j: u32, v: f32) {
    (*p)[j] = v;
}

// Each head's elements times its weight.
fn of_heads(weights: vec4<f32>, m: Heads) -> Heads {
    return Heads(weights * m[0], weights * m[1], weights * m[2], weights * m[3]);
}
