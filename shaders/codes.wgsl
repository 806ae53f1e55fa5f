// Product-quantized weights, for the kernels that read them.

// Weights of a sub-vector, and bits of a code.
override D: u32;
override BITS: u32;
// Words of a codebook.
override BOOK: u32;
// Whether all subspaces share a codebook: finding it needs no division then.
override SINGLE: bool;
// Whether a weight's single codebook is brought into workgroup memory; if not, codebooks stay in storage. One copy:
// bank conflicts cost less than the workgroups that copies would keep from running side by side.
override SHARED: bool;
// BOOK where SHARED, else 1.
override TABLE: u32;

var<workgroup> table: array<u32, TABLE>;

// Words of one centroid: two f16 each.
fn centroid_words() -> u32 {
    return (D + 1u) / 2u;
}

// Code i of stream c in the row whose words begin at `row`.
fn code_at(row: u32, i: u32, c: u32) -> u32 {
    let bit = i * BITS;
    let at = row + (bit / 32u) * weight.chunks + c;
    var code = words[at] >> (bit % 32u);
    if (32u % BITS != 0u && bit % 32u + BITS > 32u) {
        code |= words[at + weight.chunks] << (32u - bit % 32u);
    }
    return code & ((1u << BITS) - 1u);
}

// Brings a weight's single codebook into workgroup memory. Barriers are the caller's.
fn load_table(local: u32, base: u32) {
    for (var i = local; i < TABLE; i += WORKGROUP) {
        table[i] = tables[base + i];
    }
}

// Index of the first word of centroid `code` of subspace `j`: in `table`, or in `tables` from `base` on.
fn centroid(base: u32, j: u32, code: u32) -> u32 {
    if (SHARED) {
        return code * centroid_words();
    }
    if (SINGLE) {
        return base + code * centroid_words();
    }
    return base + (j / weight.group) * BOOK + code * centroid_words();
}

// Elements 2i and 2i + 1 of the centroid at `at`.
fn centroid_pair(at: u32, i: u32) -> vec2<f32> {
    if (SHARED) {
        return unpack_f16(table[at + i]);
    }
    return unpack_f16(tables[at + i]);
}
