// Few rows of x times up to MAX_SPANS slices of a weight that lie in the same buffers, each slice in a layout of its
// own. A workgroup belongs to one slice.

// How codes are stored, and whether codes or columns are missing at the end of a row's streams.
struct Spec {
    // Weights of a sub-vector.
    d: u32,
    // Of a code.
    bits: u32,
    // Words of a codebook.
    book: u32,
    // Whether all subspaces share a codebook.
    single: bool,
    // Whether the codebook is brought into workgroup memory.
    shared_table: bool,
    ragged: bool,
    // Whether the words are elements in f16; the other fields mean nothing then.
    dense: bool,
}

// One slice of the weight, and its offsets in the buffers.
struct Span {
    // First row of the whole weight that is here.
    first: u32,
    rows: u32,
    cols: u32,
    // Words from one row to the next.
    stride: u32,
    // Streams of 32 codes in a row (prelude.wgsl).
    chunks: u32,
    // Subspaces that share a codebook.
    group: u32,
    // First of its words, of its tables' words, and of its rows in `row_info`.
    words: u32,
    tables: u32,
    row_info: u32,
    // First of its workgroups, and their number.
    begin: u32,
    count: u32,
    // Its spec: d, bits and log2 K in 5 bits each, then flags.
    spec: u32,
}

override HAS_BIAS: bool;

@group(0) @binding(0) var<uniform> params: LinearParams;
@group(0) @binding(1) var<uniform> spans: array<Span, MAX_SPANS>;
@group(0) @binding(2) var<storage, read> row_info: array<vec2<u32>>; // [rows]: scale (f32), codebooks' first word
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [rows, y_stride]

fn spec(word: u32) -> Spec {
    let d = word & 31u;
    let k = 1u << ((word >> 10u) & 31u);
    let flags = vec4<u32>(word) & vec4<u32>(0x8000u, 0x10000u, 0x20000u, 0x40000u);
    return Spec(d, (word >> 5u) & 31u, ((d + 1u) / 2u) * k, flags.x != 0u, flags.y != 0u, flags.z != 0u, flags.w != 0u);
}

// First words of the rows' codebooks.
fn bases(span: Span, rows: vec4<u32>) -> vec4<u32> {
    let at = span.row_info + rows;
    return span.tables + vec4<u32>(row_info[at.x].y, row_info[at.y].y, row_info[at.z].y, row_info[at.w].y);
}

// Writes the product of row n of the span with row r of x.
fn store(span: Span, r: u32, n: u32, product: f32) {
    let at = span.first + n;
    var v = bitcast<f32>(row_info[span.row_info + n].x) * product;
    if (HAS_BIAS) {
        v += bias[at];
    }
    let out = r * params.y_stride + params.y_offset + at;
    y[out] = v + select(0.0, y[out], params.accumulate != 0u);
}
