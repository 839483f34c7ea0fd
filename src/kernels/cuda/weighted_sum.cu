//! Weighted sums: Σ wᵢ xᵢ over the members of a merge, for one or several candidates in one pass over the members.
//
// Each thread owns four neighbouring values: it reads them of every member once (8 or 16 bytes a thread, coalesced) and adds
// them to the sums of all candidates, in f64 and in the order of the members, each product rounded before it is added: the
// bits of the CPU's merge. Members may lie in different float types.
#include "common.cuh"

namespace weighted_sum {

constexpr int VALUES = 4;  // of one thread
enum Type { F32 = 0, BF16 = 1, F16 = 2 };

// Reads `count` values from `at` on.
template <typename T> __device__ inline void read(double* values, const void* from, long long at, int count, bool aligned) {
    const T* p = static_cast<const T*>(from) + at;
    if (aligned && count == VALUES) {
        Run<T, VALUES> four = load<T, VALUES>(p);
        for (int i = 0; i < VALUES; i++) values[i] = to_float(four.at[i]);
    } else {
#pragma unroll
        for (int i = 0; i < VALUES; i++) values[i] = i < count ? to_float(p[i]) : 0.0f;
    }
}

// outs: [candidates] addresses of T[n]; members: [k] addresses; types: [k]; weights: [candidates, k]. Members of weight 0 are
// not added, whatever their values.
template <typename T, int CANDIDATES>
__device__ inline void sum(const long long* outs, const long long* members, const unsigned* types, const double* weights, int k, long long n) {
    long long at = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * VALUES;
    if (at >= n) return;
    int count = n - at < VALUES ? static_cast<int>(n - at) : VALUES;
    double sums[CANDIDATES][VALUES];
#pragma unroll
    for (int c = 0; c < CANDIDATES; c++)
        for (int i = 0; i < VALUES; i++) sums[c][i] = -0.0;
    for (int member = 0; member < k; member++) {
        double values[VALUES];
        const void* from = reinterpret_cast<const void*>(members[member]);
        int size = types[member] == F32 ? 4 : 2;
        bool aligned = members[member] % (size * VALUES) == 0;
        if (types[member] == F32) read<float>(values, from, at, count, aligned);
        else if (types[member] == BF16) read<bf16>(values, from, at, count, aligned);
        else read<f16>(values, from, at, count, aligned);
#pragma unroll
        for (int c = 0; c < CANDIDATES; c++) {
            double weight = weights[c * k + member];
            if (weight == 0.0) continue;
            for (int i = 0; i < VALUES; i++) sums[c][i] += __dmul_rn(weight, values[i]);
        }
    }
#pragma unroll
    for (int c = 0; c < CANDIDATES; c++) {
        T* out = reinterpret_cast<T*>(outs[c]) + at;
        Run<T, VALUES> rounded;
        for (int i = 0; i < VALUES; i++) rounded.at[i] = from_float<T>(static_cast<float>(sums[c][i]));
        if (count == VALUES && outs[c] % sizeof(rounded) == 0) {
            store<T, VALUES>(out, rounded);
        } else {
#pragma unroll
            for (int i = 0; i < VALUES; i++)
                if (i < count) out[i] = rounded.at[i];
        }
    }
}

}  // namespace weighted_sum

#define WEIGHTED_SUM(T, suffix, candidates)                                                                                     \
    KERNEL(256, weighted_sum_##candidates##_##suffix, const long long* outs, const long long* members, const unsigned* types,   \
           const double* weights, int k, long long n) {                                                                         \
        weighted_sum::sum<T, candidates>(outs, members, types, weights, k, n);                                                   \
    }
WEIGHTED_SUM(float, f32, 1)
WEIGHTED_SUM(float, f32, 2)
WEIGHTED_SUM(float, f32, 4)
WEIGHTED_SUM(bf16, bf16, 1)
WEIGHTED_SUM(bf16, bf16, 2)
WEIGHTED_SUM(bf16, bf16, 4)
#undef WEIGHTED_SUM
