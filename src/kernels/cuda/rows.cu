//! Rows: picked from a table, put back, added up by id, turned by position, taken apart and joined.
#include "common.cuh"

namespace rows {

// Calls each(column) for the columns of a row that this thread takes, N at a time. A block has one row: nothing is divided.
template <int N, typename F> __device__ inline void columns(int width, F each) {
    for (int column = threadIdx.x * N; column < width; column += blockDim.x * N) each(column);
}

// out[i] = table[ids[i]]; all rows of `width` values.
template <typename T, int N> __device__ inline void gather(T* out, const T* table, const unsigned* ids, int width) {
    out += static_cast<long long>(blockIdx.x) * width;
    table += static_cast<long long>(ids[blockIdx.x]) * width;
    columns<N>(width, [=](int column) { store<T, N>(out + column, load<T, N>(table + column)); });
}

// out[ids[i]] = x[i], each row at most once.
template <typename T, int N> __device__ inline void scatter(T* out, const T* x, const unsigned* ids, int width) {
    out += static_cast<long long>(ids[blockIdx.x]) * width;
    x += static_cast<long long>(blockIdx.x) * width;
    columns<N>(width, [=](int column) { store<T, N>(out + column, load<T, N>(x + column)); });
}

// table[ids[u]] += Σ of the rows x[order[i]] for i from starts[u] to starts[u + 1], in that order. A block takes 128 columns of
// one id, a thread a column: nothing is added to by two threads, so there is one result.
template <typename T>
__device__ inline void add_by_id(float* table, const T* x, const unsigned* ids, const unsigned* starts, const unsigned* order, int width) {
    int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (column >= width) return;
    float sum = 0.0f;
#pragma unroll 8
    for (unsigned i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++)
        sum += to_float(x[static_cast<long long>(order[i]) * width + column]);
    table[static_cast<long long>(ids[blockIdx.x]) * width + column] += sum;
}

// RoPE of queries and keys in place: elements i and i + half of each head turn by the angle of the row's position. A thread
// turns N neighbouring pairs; the heads of the queries come first. cos, sin: [positions, half]; sign −1 turns back.
template <typename T, int N>
__device__ inline void rope(T* q, T* k, const float* cos, const float* sin, const unsigned* positions, int q_heads, int k_heads,
                            int head_dim, int half, float sign) {
    long long row = blockIdx.x, angles = static_cast<long long>(positions[row]) * half;
    q += row * q_heads * head_dim;
    k += row * k_heads * head_dim;
    columns<N>((q_heads + k_heads) * half, [=](int index) {
        int head = index / half, i = index - head * half;
        T* pair = head < q_heads ? q + head * head_dim + i : k + (head - q_heads) * head_dim + i;
        Run<float, N> c = load<float, N>(cos + angles + i), s = load<float, N>(sin + angles + i);
        Run<T, N> a = load<T, N>(pair), b = load<T, N>(pair + half);
        for (int j = 0; j < N; j++) {
            float x = to_float(a.at[j]), y = to_float(b.at[j]), turn = sign * s.at[j];
            a.at[j] = from_float<T>(x * c.at[j] - y * turn);
            b.at[j] = from_float<T>(y * c.at[j] + x * turn);
        }
        store<T, N>(pair, a);
        store<T, N>(pair + half, b);
    });
}

// Queries, keys and values out of rows in which they take turns, `count` times; or back, where `join`.
template <typename T>
__device__ inline void fused(T* fused, T* q, T* k, T* v, long long n, int count, int q_width, int k_width, int v_width, int join) {
    long long at = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    int turn_width = q_width + k_width + v_width;
    if (at >= n * count * turn_width) return;
    long long turn = at / turn_width;
    int column = at - turn * turn_width;
    T* part = column < q_width             ? q + turn * q_width + column
              : column < q_width + k_width ? k + turn * k_width + (column - q_width)
                                           : v + turn * v_width + (column - q_width - k_width);
    if (join) fused[at] = *part;
    else *part = fused[at];
}

}  // namespace rows

#define ROWS(T, suffix)                                                                                                       \
    KERNEL(256, gather_##suffix, T* out, const T* table, const unsigned* ids, int width, int wide) {                           \
        if (wide) rows::gather<T, WIDE<T>>(out, table, ids, width);                                                            \
        else rows::gather<T, 1>(out, table, ids, width);                                                                       \
    }                                                                                                                          \
    KERNEL(256, scatter_##suffix, T* out, const T* x, const unsigned* ids, int width, int wide) {                              \
        if (wide) rows::scatter<T, WIDE<T>>(out, x, ids, width);                                                               \
        else rows::scatter<T, 1>(out, x, ids, width);                                                                          \
    }                                                                                                                          \
    KERNEL(128, add_by_id_##suffix, float* table, const T* x, const unsigned* ids, const unsigned* starts,                     \
           const unsigned* order, int width) {                                                                                 \
        rows::add_by_id(table, x, ids, starts, order, width);                                                                  \
    }                                                                                                                          \
    KERNEL(256, rope_##suffix, T* q, T* k, const float* cos, const float* sin, const unsigned* positions, int q_heads,         \
           int k_heads, int head_dim, int half, float sign, int wide) {                                                        \
        if (wide) rows::rope<T, 4>(q, k, cos, sin, positions, q_heads, k_heads, head_dim, half, sign);                         \
        else rows::rope<T, 1>(q, k, cos, sin, positions, q_heads, k_heads, head_dim, half, sign);                              \
    }                                                                                                                          \
    KERNEL(256, fused_##suffix, T* fused, T* q, T* k, T* v, long long n, int count, int q_width, int k_width, int v_width,     \
           int join) {                                                                                                         \
        rows::fused(fused, q, k, v, n, count, q_width, k_width, v_width, join);                                                \
    }
ROWS(float, f32)
ROWS(bf16, bf16)
#undef ROWS
