// y = R x per row; x and y may be the same. A thread block a rotation block. Grid: (blocks of the row, rows).
KERNEL rotate(const f32* x, f32* y, RotateParams params) {
    __shared__ __align__(16) f32 stage[576];
    release_next();
    wait_inputs();
    const u32 first = blockIdx.x * params.rotate;
    const u64 row = (u64)blockIdx.y * params.dim + first;
    for (u32 i = threadIdx.x; i < params.rotate; i += blockDim.x) stage[padded(i)] = x[row + i];
    rotate_shared<false>(stage, first, params.rotate, params.rotate);
    for (u32 i = threadIdx.x; i < params.rotate; i += blockDim.x) y[row + i] = stage[padded(i)];
}
