// What pq_matvec_rows.wgsl reads at places of their own for every invocation, where all of it is short. Drivers that
// compute on a CPU read uniforms without asking for each invocation whether it may.

@group(0) @binding(5) var<storage, read> words: array<vec4<u32>>; // [rows, stride / 4]
@group(0) @binding(6) var<uniform> x: array<vec4<f32>, 4096>; // [rows, cols]
@group(0) @binding(7) var<uniform> tables: array<vec4<u32>, 4096>; // [codebooks, K, centroid words]
