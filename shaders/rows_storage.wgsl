// What pq_matvec_rows.wgsl reads at places of their own for every invocation, of any length.

@group(0) @binding(5) var<storage, read> words: array<vec4<u32>>; // [rows, stride / 4]
@group(0) @binding(6) var<storage, read> x: array<vec4<f32>>; // [rows, cols]
@group(0) @binding(7) var<storage, read> tables: array<vec4<u32>>; // [codebooks, K, centroid words]
