// Adds the upper triangle of a product X^T X, which cuBLAS computed in f32, to sums in f64. Grid: (dim), a block a row.
// Bound: memory, 20 bytes an element: a tenth of the product's time at 1,024 rows of X.
KERNEL BOUNDS(256) hessian_add(const f32* product, double* sums, u32 dim) {
    wait_inputs();
    const u64 row = (u64)blockIdx.x * dim;
    for (u32 i = blockIdx.x + threadIdx.x; i < dim; i += 256) sums[row + i] += product[row + i];
}
