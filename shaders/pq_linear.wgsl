// Arguments of the linear kernels for one product-quantized slice.

override HAS_BIAS: bool;

@group(0) @binding(0) var<uniform> params: LinearParams;
@group(0) @binding(1) var<uniform> weight: Weight;
@group(0) @binding(2) var<storage, read> x: array<f32>; // [rows, weight.cols]
@group(0) @binding(3) var<storage, read> words: array<u32>; // [weight.rows, weight.stride]
@group(0) @binding(4) var<storage, read> tables: array<u32>; // [codebooks, K, centroid words]
@group(0) @binding(5) var<storage, read> row_info: array<vec2<u32>>; // [weight.rows]: scale (f32), codebooks' first word
@group(0) @binding(6) var<storage, read> bias: array<f32>; // [out]
@group(0) @binding(7) var<storage, read_write> y: array<f32>; // [rows, y_stride]
