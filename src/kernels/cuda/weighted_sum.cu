//! Weighted sums: Σ wᵢ xᵢ over the members of a merge, for one or several candidates in one pass over the members.
//
// Each thread owns eight neighbouring values: it reads them of every member once, 16 bytes at a time (the next member's before it
// computes with this one's, so that reads overlap), and adds them to the sums of all candidates, in f64 and in the order of the
// members, each product rounded before it is added: the bits of the CPU's merge. Members may lie in different float types.
#include "common.cuh"

namespace weighted_sum {

constexpr int VALUES = 8;  // of one thread
enum Type { F32 = 0, BF16 = 1, F16 = 2 };

// Eight values as they lie in memory; the second half is that of f32.
struct Piece {
    Run<uint32_t, 4> halves[2];
    unsigned type;
};

template <typename T> __device__ inline float one(const void* from, long long at) { return to_float(static_cast<const T*>(from)[at]); }

// Reads `count` values from `at` on: whole pieces that are aligned as they are, others as f32.
__device__ inline Piece read(long long member, unsigned type, long long at, int count) {
    const void* from = reinterpret_cast<const void*>(member);
    Piece piece;
    piece.type = type;
    if (count == VALUES && member % 16 == 0) {
        const uint32_t* words = static_cast<const uint32_t*>(from) + (type == F32 ? at : at / 2);
        piece.halves[0] = load<uint32_t, 4>(words);
        if (type == F32) piece.halves[1] = load<uint32_t, 4>(words + 4);
        return piece;
    }
    piece.type = F32;
#pragma unroll
    for (int i = 0; i < VALUES; i++) {
        float value = 0.0f;
        if (i < count) value = type == F32 ? one<float>(from, at + i) : type == BF16 ? one<bf16>(from, at + i) : one<f16>(from, at + i);
        piece.halves[i / 4].at[i % 4] = __float_as_uint(value);
    }
    return piece;
}

__device__ inline void widen(double (&values)[VALUES], const Piece& piece) {
    if (piece.type == F32) {
        for (int i = 0; i < VALUES; i++) values[i] = __uint_as_float(piece.halves[i / 4].at[i % 4]);
    } else {
        for (int i = 0; i < VALUES; i++) {
            uint32_t word = piece.halves[0].at[i / 2];
            uint16_t bits = i % 2 ? word >> 16 : word;
            if (piece.type == BF16) values[i] = __uint_as_float(static_cast<uint32_t>(bits) << 16);
            else values[i] = to_float(__ushort_as_half(bits));
        }
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
    Piece next = read(members[0], types[0], at, count);
    for (int member = 0; member < k; member++) {
        Piece piece = next;
        if (member + 1 < k) next = read(members[member + 1], types[member + 1], at, count);
        double values[VALUES];
        widen(values, piece);
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
        if (count == VALUES && outs[c] % 16 == 0) {
#pragma unroll
            for (int i = 0; i < VALUES; i += WIDE<T>) {
                Run<T, WIDE<T>> rounded;
                for (int j = 0; j < WIDE<T>; j++) rounded.at[j] = from_float<T>(static_cast<float>(sums[c][i + j]));
                store<T, WIDE<T>>(out + i, rounded);
            }
        } else {
#pragma unroll
            for (int i = 0; i < VALUES; i++)
                if (i < count) out[i] = from_float<T>(static_cast<float>(sums[c][i]));
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
