//! Common ground of all kernels: types, conversions, and sums over a warp and a block in a fixed order.
//
// The same text is compiled by nvcc for the GPU and, with MIXPOOL_EMULATION, by a C++ compiler for the processor (see
// emulation.hpp). Rows are tokens; matrices are row-major. A kernel's result may not depend on the order in which blocks run.
#pragma once

#ifdef MIXPOOL_EMULATION
#include "emulation.hpp"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// A kernel that Rust launches by name, with at most `threads` threads a block.
#define KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
// The same, with so few registers that `blocks` of them run on a multiprocessor at a time.
#define RESIDENT_KERNEL(threads, blocks, name, ...)                                                                     \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
// Shared memory whose size the launch says.
#define DYNAMIC_SHARED(type, name)                                                                                      \
    extern __shared__ __align__(16) unsigned char dynamic_shared[];                                                     \
    type* name = reinterpret_cast<type*>(dynamic_shared)
#endif

typedef __nv_bfloat16 bf16;
typedef __half f16;

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(f16 x) { return __half2float(x); }

template <typename T> __device__ inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) { return x; }
template <> __device__ inline bf16 from_float<bf16>(float x) { return __float2bfloat16(x); }

// N neighbouring values, read and written by one instruction.
template <typename T, int N> struct alignas(sizeof(T) * N) Run {
    T at[N];
};
template <typename T, int N> __device__ inline Run<T, N> load(const T* p) { return *reinterpret_cast<const Run<T, N>*>(p); }
template <typename T, int N> __device__ inline void store(T* p, const Run<T, N>& run) { *reinterpret_cast<Run<T, N>*>(p) = run; }

// How many values 16 bytes hold.
template <typename T> constexpr int WIDE = 16 / sizeof(T);

// Whether every row of `width` values from `p` on can be read 16 bytes at a time.
template <typename T> __device__ inline bool is_wide(const T* p, int width) {
    return reinterpret_cast<uintptr_t>(p) % 16 == 0 && width % WIDE<T> == 0;
}

__device__ inline float warp_sum(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ inline float warp_max(float x) {
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

__device__ inline double warp_sum(double x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// The sum over all threads of a block, in every thread. `scratch` holds a value per warp.
template <typename T> __device__ inline T block_sum(T x, T* scratch) {
    x = warp_sum(x);
    __syncthreads();  // whoever used `scratch` before is done
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    T sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / WARP; warp++) sum += scratch[warp];
    return sum;
}

__device__ inline float block_max(float x, float* scratch) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = x;
    __syncthreads();
    float max = scratch[0];
    for (unsigned warp = 1; warp < blockDim.x / WARP; warp++) max = fmaxf(max, scratch[warp]);
    return max;
}
