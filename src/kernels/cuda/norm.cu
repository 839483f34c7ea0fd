//! RMS norm and layer norm of rows, forward and backward.
//
// One warp takes one row; lanes read neighbouring 16 bytes, so a row is one coalesced stream. A row is read twice or three times
// (moments, then values), from the cache but for the first. The gradient of the gain is a sum over rows: each warp adds its rows up in
// shared memory, where no two lanes meet, a block leaves the sums of its warps, and column_sums.cu adds these in block order.
#include "common.cuh"

namespace norms {

constexpr int THREADS = 128;  // four rows a block

// Mean (0 for an RMS norm) and 1 / sqrt(variance + eps) of a row, in every lane.
template <bool CENTRED, typename T, int N>
__device__ inline void moments(const T* x, int width, float eps, float& mean, float& scale) {
    int lane = threadIdx.x % WARP;
    mean = 0.0f;
    if (CENTRED) {
        float sum = 0.0f;
        for (int i = lane * N; i < width; i += WARP * N) {
            Run<T, N> run = load<T, N>(x + i);
            for (int j = 0; j < N; j++) sum += to_float(run.at[j]);
        }
        mean = warp_sum(sum) / width;
    }
    float squares = 0.0f;
    for (int i = lane * N; i < width; i += WARP * N) {
        Run<T, N> run = load<T, N>(x + i);
        for (int j = 0; j < N; j++) {
            float d = to_float(run.at[j]) - mean;
            squares += d * d;
        }
    }
    scale = 1.0f / sqrtf(warp_sum(squares) / width + eps);
}

// y = (x − mean) · scale · gain + bias, all rows [n, width]. With `added`, x += added first, and is written back.
template <bool CENTRED, typename T, int N>
__device__ inline void forward(T* y, T* x, const T* added, const T* gain, const T* bias, int width, float eps, int row) {
    int lane = threadIdx.x % WARP;
    x += static_cast<long long>(row) * width;
    y += static_cast<long long>(row) * width;
    if (added) {
        added += static_cast<long long>(row) * width;
        for (int i = lane * N; i < width; i += WARP * N) {
            Run<T, N> sum = load<T, N>(x + i), other = load<T, N>(added + i);
            for (int j = 0; j < N; j++) sum.at[j] = from_float<T>(to_float(sum.at[j]) + to_float(other.at[j]));
            store<T, N>(x + i, sum);  // the same lane reads it again
        }
    }
    float mean, scale;
    moments<CENTRED, T, N>(x, width, eps, mean, scale);
    for (int i = lane * N; i < width; i += WARP * N) {
        Run<T, N> in = load<T, N>(x + i), g = load<T, N>(gain + i), out;
        for (int j = 0; j < N; j++) {
            float normed = (to_float(in.at[j]) - mean) * scale * to_float(g.at[j]);
            if (CENTRED) normed += to_float(bias[i + j]);
            out.at[j] = from_float<T>(normed);
        }
        store<T, N>(y + i, out);
    }
}

// dx (+)= scale (g − mean(g) − x̂ mean(g x̂)) with g = gain · dy; an RMS norm has no mean(g). Adds dy x̂ to `sums`, in which the
// values that the lanes own lie next to each other: no two lanes use one bank.
template <bool CENTRED, typename T, int N>
__device__ inline void row_backward(T* dx, float* sums, const T* x, const T* gain, const T* dy, int width, float eps, int accumulate) {
    int lane = threadIdx.x % WARP;
    float mean, scale;
    moments<CENTRED, T, N>(x, width, eps, mean, scale);
    float shift = 0.0f, pull = 0.0f;
    for (int i = lane * N; i < width; i += WARP * N) {
        Run<T, N> in = load<T, N>(x + i), g = load<T, N>(gain + i), d = load<T, N>(dy + i);
        for (int j = 0; j < N; j++) {
            float weighted = to_float(g.at[j]) * to_float(d.at[j]);
            shift += weighted;
            pull += weighted * (to_float(in.at[j]) - mean);
        }
    }
    shift = CENTRED ? warp_sum(shift) / width : 0.0f;
    pull = warp_sum(pull) * scale / width;
    for (int i = lane * N; i < width; i += WARP * N) {
        Run<T, N> in = load<T, N>(x + i), g = load<T, N>(gain + i), d = load<T, N>(dy + i), out;
        if (accumulate) out = load<T, N>(dx + i);
        for (int j = 0; j < N; j++) {
            float derivative = to_float(d.at[j]), normed = (to_float(in.at[j]) - mean) * scale;
            float gradient = scale * (to_float(g.at[j]) * derivative - shift - normed * pull);
            out.at[j] = from_float<T>(accumulate ? to_float(out.at[j]) + gradient : gradient);
            sums[i - lane * N + j * WARP + lane] += derivative * normed;
        }
        store<T, N>(dx + i, out);
    }
}

// The rows of a block: `rows` from blockIdx.x · rows on, the warps in turns. partials[block] = Σ of dy x̂ over them. Shared memory:
// for each warp `padded` sums, as many as `width` or a few more.
template <bool CENTRED, typename T, int N>
__device__ inline void backward(T* dx, float* partials, const T* x, const T* gain, const T* dy, int n, int width, float eps, int accumulate,
                                int rows, int padded) {
    DYNAMIC_SHARED(float, sums);
    int warps = blockDim.x / WARP;
    for (int i = threadIdx.x; i < warps * padded; i += blockDim.x) sums[i] = 0.0f;
    __syncthreads();
    int last = min((static_cast<int>(blockIdx.x) + 1) * rows, n);
    for (int row = blockIdx.x * rows + threadIdx.x / WARP; row < last; row += warps) {
        long long at = static_cast<long long>(row) * width;
        row_backward<CENTRED, T, N>(dx + at, sums + threadIdx.x / WARP * padded, x + at, gain, dy + at, width, eps, accumulate);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < padded; i += blockDim.x) {
        int column = i / (WARP * N) * (WARP * N) + i % WARP * N + i % (WARP * N) / WARP;
        if (column >= width) continue;
        float sum = 0.0f;
        for (int warp = 0; warp < warps; warp++) sum += sums[warp * padded + i];
        partials[static_cast<long long>(blockIdx.x) * width + column] = sum;
    }
}

__device__ inline int row_of_warp() { return (blockIdx.x * blockDim.x + threadIdx.x) / WARP; }

}  // namespace norms

#define NORM(T, suffix, kind, CENTRED)                                                                                        \
    KERNEL(128, kind##_##suffix, T* y, T* x, const T* added, const T* gain, const T* bias, int n, int width, float eps) {      \
        int row = norms::row_of_warp();                                                                                         \
        if (row >= n) return;                                                                                                  \
        bool wide = is_wide(x, width) && is_wide(y, width) && is_wide(gain, width) && is_wide(added, width);                   \
        if (wide) norms::forward<CENTRED, T, WIDE<T>>(y, x, added, gain, bias, width, eps, row);                                \
        else norms::forward<CENTRED, T, 1>(y, x, added, gain, bias, width, eps, row);                                           \
    }                                                                                                                          \
    KERNEL(128, kind##_backward_##suffix, T* dx, float* partials, const T* x, const T* gain, const T* dy, int n, int width,    \
           float eps, int accumulate, int rows, int padded) {                                                                  \
        bool wide = is_wide(x, width) && is_wide(dx, width) && is_wide(gain, width) && is_wide(dy, width);                     \
        if (wide) norms::backward<CENTRED, T, WIDE<T>>(dx, partials, x, gain, dy, n, width, eps, accumulate, rows, padded);    \
        else norms::backward<CENTRED, T, 1>(dx, partials, x, gain, dy, n, width, eps, accumulate, rows, padded);               \
    }
NORM(float, f32, rms_norm, false)
NORM(bf16, bf16, rms_norm, false)
NORM(float, f32, layer_norm, true)
NORM(bf16, bf16, layer_norm, true)
#undef NORM
