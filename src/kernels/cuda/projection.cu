//! Projections: the signs of a random matrix, as src/kernels/projection.rs makes them, times a vector.
//
// A thread owns a column, a block some columns of one tile of positions, whose values pass by in shared memory. 64 values are added
// in f32, in four sums by turns; these, tiles and all in f64 and in their order.
#include "common.cuh"

namespace projection {

constexpr int BLOCK = 64;     // positions whose signs in one column are one draw
constexpr int CHUNK = 1024;   // values in shared memory
constexpr int THREADS = 128;  // columns of a block

// The finaliser of SplitMix64.
__device__ inline unsigned long long mix(unsigned long long z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

__device__ inline float signed_value(float x, unsigned bits, int i) {
    return __uint_as_float(__float_as_uint(x) ^ ((bits << (31 - i)) & 0x80000000u));
}

}  // namespace projection

// partials[tile][column] = Σ of x with the column's signs over the positions tiles[tile] = (first, end).
KERNEL(128, projection_partials, double* partials, const float* x, const long long* tiles, int columns, long long seed) {
    using namespace projection;
    __shared__ float values[CHUNK];
    long long first = tiles[2 * blockIdx.x], end = tiles[2 * blockIdx.x + 1];
    int column = blockIdx.y * THREADS + threadIdx.x;
    double sum = 0.0;
    for (long long from = first / BLOCK * BLOCK; from < end; from += CHUNK) {
        __syncthreads();
        for (int i = threadIdx.x; i < CHUNK; i += blockDim.x) values[i] = from + i >= first && from + i < end ? x[from + i] : 0.0f;
        __syncthreads();
        for (int block = 0; block < CHUNK / BLOCK && from + block * BLOCK < end; block++) {
            unsigned long long counter = (static_cast<unsigned long long>(from / BLOCK + block) << 20) + column;
            unsigned long long word = mix(static_cast<unsigned long long>(seed) + counter * 0x9e3779b97f4a7c15ull);
            unsigned halves[2] = {static_cast<unsigned>(word), static_cast<unsigned>(word >> 32)};
            float sums[4] = {};
#pragma unroll
            for (int i = 0; i < BLOCK; i++) sums[i % 4] += signed_value(values[block * BLOCK + i], halves[i / 32], i % 32);
            sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
        }
    }
    if (column < columns) partials[static_cast<long long>(blockIdx.x) * columns + column] = sum;
}

// sums[column] = scale · Σ over tiles of partials[tile][column].
KERNEL(128, projection_sums, double* sums, const double* partials, int tiles, int columns, double scale) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    double sum = 0.0;
#pragma unroll 8
    for (int tile = 0; tile < tiles; tile++) sum += partials[static_cast<long long>(tile) * columns + column];
    sums[column] = scale * sum;
}
