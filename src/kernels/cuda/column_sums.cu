//! Column sums: gradients that are sums over rows, of biases; and partial sums of blocks added to a gradient.
//
// Blocks take some rows of 128 columns, one thread a column, so that a warp reads neighbouring values; each leaves its sum in
// `partials`, and a second kernel adds these to the gradient in an order that the shapes alone decide.
#include "common.cuh"

namespace column_sums {

// partials[block][column] = Σ over the block's rows of dy.
template <typename T> __device__ inline void partial(float* partials, const T* dy, int n, int width, int rows) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    int first = blockIdx.y * rows, last = min(first + rows, n);
    float sum = 0.0f;
#pragma unroll 8
    for (int row = first; row < last; row++) sum += to_float(dy[static_cast<long long>(row) * width + column]);
    partials[static_cast<long long>(blockIdx.y) * width + column] = sum;
}

}  // namespace column_sums

KERNEL(128, column_sums_f32, float* partials, const float* dy, int n, int width, int rows) {
    column_sums::partial(partials, dy, n, width, rows);
}

KERNEL(128, column_sums_bf16, float* partials, const bf16* dy, int n, int width, int rows) {
    column_sums::partial(partials, dy, n, width, rows);
}

// sums[column] += Σ over blocks of partials[block][column]: a block takes 32 columns, each of its warps every eighth partial sum.
KERNEL(256, add_partials, float* sums, const float* partials, int blocks, int width) {
    __shared__ float scratch[8][WARP];
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (column < width) {
#pragma unroll 8
        for (int block = warp; block < blocks; block += 8) sum += partials[static_cast<long long>(block) * width + column];
    }
    scratch[warp][lane] = sum;
    __syncthreads();
    if (warp != 0 || column >= width) return;
    for (int other = 1; other < 8; other++) sum += scratch[other][lane];
    sums[column] += sum;
}
