//! Cross-entropy of rows of logits, and its gradient in their place.
//
// The logits of some rows come from a matrix product, in f32; a block takes one row. The first pass keeps a running maximum and
// sum a thread, the second, which finds the row in the cache, writes the gradient for the products that follow.
#include "common.cuh"

namespace cross_entropy {

constexpr int THREADS = 256;

// log Σ e^logit = max + log(sum) of a row, in every thread.
template <int N> __device__ inline void log_sum_exp(const float* logits, int vocabulary, float& max, float& sum) {
    __shared__ float scratch[THREADS / WARP];
    float own_max = -INFINITY, own_sum = 0.0f;
    for (int i = threadIdx.x * N; i < vocabulary; i += blockDim.x * N) {
        Run<float, N> run = load<float, N>(logits + i);
        float seen = own_max;
        for (int j = 0; j < N; j++) seen = fmaxf(seen, run.at[j]);
        if (seen > own_max) own_sum *= expf(own_max - seen);
        own_max = seen;
        for (int j = 0; j < N; j++) own_sum += expf(run.at[j] - own_max);  // a NaN stays in the sum
    }
    max = block_max(own_max, scratch);
    sum = block_sum(own_max == -INFINITY ? own_sum : own_sum * expf(own_max - max), scratch);
}

template <int N> __device__ inline double nll(const float* logits, const unsigned* targets, int vocabulary, float& max, float& sum) {
    log_sum_exp<N>(logits, vocabulary, max, sum);
    return log(static_cast<double>(sum)) + static_cast<double>(max) - static_cast<double>(logits[targets[blockIdx.x]]);
}

// dlogits = factor e^(logit − max), and at the target what `at_target` makes of that; may be the logits themselves.
template <typename T, int N, typename F>
__device__ inline void write_gradient(T* dlogits, const float* logits, int vocabulary, float max, float factor, int target, F at_target) {
    for (int i = threadIdx.x * N; i < vocabulary; i += blockDim.x * N) {
        Run<float, N> run = load<float, N>(logits + i);
        Run<T, N> gradient;
        for (int j = 0; j < N; j++) {
            float p = expf(run.at[j] - max) * factor;
            gradient.at[j] = from_float<T>(i + j == target ? at_target(p) : p);
        }
        store<T, N>(dlogits + i, gradient);
    }
}

// dlogits = scale (softmax − one at the target).
template <typename T, int N>
__device__ inline void backward(T* dlogits, const float* logits, const unsigned* targets, double* out, int vocabulary, float scale) {
    float max, sum;
    long long row = static_cast<long long>(blockIdx.x) * vocabulary;
    logits += row;
    dlogits += row;
    double loss = nll<N>(logits, targets, vocabulary, max, sum);
    __syncthreads();  // all have read the target's logit before it may be overwritten
    if (threadIdx.x == 0) out[blockIdx.x] = loss;
    int target = targets[blockIdx.x];
    write_gradient<T, N>(dlogits, logits, vocabulary, max, scale / sum, target, [scale](float p) { return p - scale; });
}

// out = ln(p / (1 − p)) with the clipped probability p of the target; dlogits = scale p′ (δ − softmax) / (p (1 − p)), with p′ the
// probability before it was clipped.
template <typename T, int N>
__device__ inline void log_odds(T* dlogits, const float* logits, const unsigned* targets, double* out, int vocabulary, float scale) {
    float max, sum;
    long long row = static_cast<long long>(blockIdx.x) * vocabulary;
    logits += row;
    dlogits += row;
    int target = targets[blockIdx.x];
    log_sum_exp<N>(logits, vocabulary, max, sum);
    double before = exp(static_cast<double>(logits[target]) - static_cast<double>(max)) / static_cast<double>(sum);
    __syncthreads();  // all have read the target's logit before it may be overwritten
    double p = before > 0.9 ? before - 0.01 : before < 0.001 ? before + 0.01 : before;
    if (threadIdx.x == 0) out[blockIdx.x] = log(p / (1.0 - p));
    double size = static_cast<double>(scale) * before / (p * (1.0 - p));
    float factor = static_cast<float>(-size / static_cast<double>(sum)), own = static_cast<float>(size * (1.0 - before));
    write_gradient<T, N>(dlogits, logits, vocabulary, max, factor, target, [own](float) { return own; });
}

}  // namespace cross_entropy

// nll[row] of logits [rows, vocabulary]; one block a row.
KERNEL(256, nll, double* nll, const float* logits, const unsigned* targets, int vocabulary) {
    float max, sum;
    const float* row = logits + static_cast<long long>(blockIdx.x) * vocabulary;
    double loss = is_wide(logits, vocabulary) ? cross_entropy::nll<4>(row, targets, vocabulary, max, sum)
                                              : cross_entropy::nll<1>(row, targets, vocabulary, max, sum);
    if (threadIdx.x == 0) nll[blockIdx.x] = loss;
}

#define NLL_BACKWARD(T, suffix)                                                                                               \
    KERNEL(256, nll_backward_##suffix, T* dlogits, const float* logits, const unsigned* targets, double* nll, int vocabulary,  \
           float scale) {                                                                                                      \
        if (is_wide(logits, vocabulary) && reinterpret_cast<uintptr_t>(dlogits) % 16 == 0)                                     \
            cross_entropy::backward<T, 4>(dlogits, logits, targets, nll, vocabulary, scale);                                   \
        else cross_entropy::backward<T, 1>(dlogits, logits, targets, nll, vocabulary, scale);                                  \
    }
NLL_BACKWARD(float, f32)
NLL_BACKWARD(bf16, bf16)
#undef NLL_BACKWARD

#define LOG_ODDS_BACKWARD(T, suffix)                                                                                          \
    KERNEL(256, log_odds_backward_##suffix, T* dlogits, const float* logits, const unsigned* targets, double* log_odds,        \
           int vocabulary, float scale) {                                                                                      \
        if (is_wide(logits, vocabulary) && reinterpret_cast<uintptr_t>(dlogits) % 16 == 0)                                     \
            cross_entropy::log_odds<T, 4>(dlogits, logits, targets, log_odds, vocabulary, scale);                              \
        else cross_entropy::log_odds<T, 1>(dlogits, logits, targets, log_odds, vocabulary, scale);                             \
    }
LOG_ODDS_BACKWARD(float, f32)
LOG_ODDS_BACKWARD(bf16, bf16)
#undef LOG_ODDS_BACKWARD

// sum[0] += factor Σ values, by one block.
KERNEL(256, add_sum, double* sum, const double* values, int n, double factor) {
    __shared__ double scratch[256 / WARP];
    double own = 0.0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) own += values[i];
    own = block_sum(own, scratch);
    if (threadIdx.x == 0) sum[0] += factor * own;
}
