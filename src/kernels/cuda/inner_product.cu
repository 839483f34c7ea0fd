//! Inner products of rows of f32 with rows of f32, summed in f64.
//
// Blocks of a pair of rows leave a sum each in `partials`; a second kernel adds these up in an order that the length alone decides.
#include "common.cuh"

namespace inner_product {

// Σ over the values of this block; the blocks of a row take turns.
template <int N> __device__ inline double own(const float* a, const float* b, long long n) {
    double sum = 0.0;
    long long step = static_cast<long long>(gridDim.x) * blockDim.x * N;
    for (long long i = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * N; i < n; i += step) {
        Run<float, N> x = load<float, N>(a + i), y = load<float, N>(b + i);
        for (int j = 0; j < N; j++) sum += static_cast<double>(x.at[j]) * static_cast<double>(y.at[j]);
    }
    return sum;
}

}  // namespace inner_product

// partials[pair][block], pair = (row of a) · b_rows + (row of b); rows of n values begin a_stride or b_stride apart.
KERNEL(256, inner_products, double* partials, const float* a, long long a_stride, const float* b, long long b_stride, int b_rows,
       long long n) {
    __shared__ double scratch[256 / WARP];
    a += (blockIdx.y / b_rows) * a_stride;
    b += (blockIdx.y % b_rows) * b_stride;
    uintptr_t places = reinterpret_cast<uintptr_t>(a) | reinterpret_cast<uintptr_t>(b);
    double sum = places % 16 == 0 && n % 4 == 0 ? inner_product::own<4>(a, b, n) : inner_product::own<1>(a, b, n);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) partials[static_cast<long long>(blockIdx.y) * gridDim.x + blockIdx.x] = sum;
}

// sums[pair] += Σ over blocks of partials[pair][block]; a block takes one pair.
KERNEL(256, add_inner_products, double* sums, const double* partials, int blocks) {
    __shared__ double scratch[256 / WARP];
    double sum = 0.0;
    for (int block = threadIdx.x; block < blocks; block += blockDim.x)
        sum += partials[static_cast<long long>(blockIdx.x) * blocks + block];
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] += sum;
}
