//! Column sums: gradients that are sums over rows, of biases and of gains of norms.
//
// Blocks take some rows of 128 columns, one thread a column, so that a warp reads neighbouring values; each leaves its sum in
// `partials`, and a second kernel adds these to the gradient in the order of the blocks.
#pragma once
#include "common.cuh"

namespace column_sums {

// partials[block][column] = Σ over the block's rows of dy, or of dy x̂ where stats [n, 2] hold mean and scale of every row of x.
template <typename T>
__device__ inline void partial(float* partials, const T* dy, const T* x, const float* stats, int n, int width, int rows) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    int first = blockIdx.y * rows, last = min(first + rows, n);
    float sum = 0.0f;
#pragma unroll 4
    for (int row = first; row < last; row++) {
        long long at = static_cast<long long>(row) * width + column;
        float d = to_float(dy[at]);
        if (stats) d *= (to_float(x[at]) - stats[2 * row]) * stats[2 * row + 1];
        sum += d;
    }
    partials[static_cast<long long>(blockIdx.y) * width + column] = sum;
}

}  // namespace column_sums

KERNEL(128, column_sums_f32, float* partials, const float* dy, const float* x, const float* stats, int n, int width, int rows) {
    column_sums::partial(partials, dy, x, stats, n, width, rows);
}

KERNEL(128, column_sums_bf16, float* partials, const bf16* dy, const bf16* x, const float* stats, int n, int width, int rows) {
    column_sums::partial(partials, dy, x, stats, n, width, rows);
}

// sums[column] += Σ over blocks of partials[block][column].
KERNEL(128, add_partials, float* sums, const float* partials, int blocks, int width) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
#pragma unroll 8
    for (int block = 0; block < blocks; block++) sum += partials[static_cast<long long>(block) * width + column];
    sums[column] += sum;
}
