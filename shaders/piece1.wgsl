// Attention reads one element of a head at a time, and of up to four heads.
const PIECE = 1u;
alias Piece = f32;
alias Heads = vec4<f32>;

// The products of four heads' weights with a piece.
fn outer(weights: vec4<f32>, v: Piece) -> Heads {
    return weights * v;
}

// Element j of four heads.
fn of_element(m: Heads, j: u32) -> vec4<f32> {
    return m;
}

fn set_head(m: ptr<function, Heads>, j: u32, h: u32, v: f32) {
    (*m)[h] = v;
}

fn set_element(p: ptr<function, Piece>, j: u32, v: f32) {
    *p = v;
}

// Each head's elements times its weight.
fn of_heads(weights: vec4<f32>, m: Heads) -> Heads {
    return weights * m;
}
