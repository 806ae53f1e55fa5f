// Product-quantized weights, for the kernels that read them.

// Weights per sub-vector, and bits of a code as it is stored here.
override D: u32;
override BITS: u32;
// Words of a codebook.
override BOOK: u32;
// Whether a weight's only codebook is brought into workgroup memory; if not, codebooks stay in storage. Lanes meet in
// its banks, but copies of it side by side would leave room for fewer workgroups, which is worse.
override SHARED: bool;
// BOOK where SHARED, else 1.
override TABLE: u32;

var<workgroup> table: array<u32, TABLE>;

// Words of one centroid: two f16 each.
fn centroid_words() -> u32 {
    return (D + 1u) / 2u;
}

fn code_mask() -> u32 {
    return (1u << BITS) - 1u;
}

// Code i of stream c in the row whose words begin at `row`.
fn code_at(row: u32, i: u32, c: u32) -> u32 {
    let bit = i * BITS;
    let at = row + (bit / 32u) * weight.chunks + c;
    var code = words[at] >> (bit % 32u);
    if (32u % BITS != 0u && bit % 32u + BITS > 32u) {
        code |= words[at + weight.chunks] << (32u - bit % 32u);
    }
    return code & code_mask();
}

// Brings a weight's only codebook into workgroup memory. Barriers are the caller's.
fn load_table(local: u32, base: u32) {
    for (var i = local; i < TABLE; i += WORKGROUP) {
        table[i] = tables[base + i];
    }
}

// Where centroid `code` of subspace `j` begins: in the table, or after `base` in storage.
fn centroid(base: u32, j: u32, code: u32) -> u32 {
    if (SHARED) {
        return code * centroid_words();
    }
    return base + (j / weight.group) * BOOK + code * centroid_words();
}

// Elements 2i and 2i + 1 of the centroid at `at`.
fn centroid_pair(at: u32, i: u32) -> vec2<f32> {
    if (SHARED) {
        return halves(table[at + i]);
    }
    return halves(tables[at + i]);
}
