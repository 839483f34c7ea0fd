//! Attention for any head dimension up to 256 without tensor cores: causal, grouped-query, packed sequences.
//
// Queries and keys are taken in tiles of 16 of one sequence and one head; a tile of scores is one value a thread. Forward
// (Dao et al. 2022, arXiv 2205.14135): a block holds 16 queries, walks over the keys they see and keeps a running maximum and sum,
// so no row of scores is ever whole; it saves the log-sum-exp of each row. Backward recomputes the probabilities: once for
// blocks of queries, which sum dq, once for blocks of keys, which sum dk and dv over all queries and heads that read them. Each
// value is summed by one block in a fixed order.
//
// q, out, dout, dq: [n, heads, dim]; k, v, dk, dv: [n, keys, dim]; lse, delta: [n, heads]; tiles: [tiles, 3], the first row of
// each, and where its sequence starts and ends.
#pragma once
#include "common.cuh"

namespace attention {

constexpr int SIDE = 16;      // of a tile; 256 threads
constexpr int PER_THREAD = 16;  // values of a row of 256 that one of 16 threads owns

struct Tile {
    int first, start, end, rows;  // rows: how many of the tile are there
};

__device__ inline Tile tile_of(const unsigned* tiles, int side, unsigned index) {
    Tile tile;
    tile.first = tiles[3 * index];
    tile.start = tiles[3 * index + 1];
    tile.end = tiles[3 * index + 2];
    tile.rows = min(side, tile.end - tile.first);
    return tile;
}

// 16 rows of one head in shared memory, a padded row apart; rows that are not there are 0.
template <typename T> __device__ inline void fill(float* shared, const T* from, int first, int rows, int heads, int head, int dim) {
    for (int i = threadIdx.x; i < SIDE * dim; i += blockDim.x) {
        int row = i / dim, d = i - row * dim;
        bool there = row < rows;
        shared[row * (dim + 1) + d] = there ? to_float(from[(static_cast<long long>(first + row) * heads + head) * dim + d]) : 0.0f;
    }
}

__device__ inline float dot(const float* a, const float* b, int dim) {
    float sum = 0.0f;
    for (int d = 0; d < dim; d++) sum += a[d] * b[d];
    return sum;
}

// sums[r] += Σ over the tile of weights[j] · rows[j][column + 16 r].
__device__ inline void add_rows(float* sums, const float* weights, const float* rows, int column, int dim) {
    for (int j = 0; j < SIDE; j++) {
        float weight = weights[j];
#pragma unroll
        for (int r = 0; r < PER_THREAD; r++)
            if (column + SIDE * r < dim) sums[r] += weight * rows[j * (dim + 1) + column + SIDE * r];
    }
}

template <typename T>
__device__ inline void put(T* to, const float* sums, float factor, int row, int heads, int head, int dim, int column) {
#pragma unroll
    for (int r = 0; r < PER_THREAD; r++)
        if (column + SIDE * r < dim)
            to[(static_cast<long long>(row) * heads + head) * dim + column + SIDE * r] = from_float<T>(sums[r] * factor);
}

template <typename T>
__device__ inline void forward(T* out, float* lse, const T* q, const T* k, const T* v, const unsigned* tiles, int heads, int keys, int dim,
                               float scale) {
    DYNAMIC_SHARED(float, shared);
    float *q_rows = shared, *k_rows = q_rows + SIDE * (dim + 1), *v_rows = k_rows + SIDE * (dim + 1);
    float *scores = v_rows + SIDE * (dim + 1), *weights = scores + SIDE * SIDE;
    Tile tile = tile_of(tiles, SIDE, blockIdx.x);
    int head = blockIdx.y, key_head = head / (heads / keys);
    int i = threadIdx.x / SIDE, j = threadIdx.x % SIDE;
    fill(q_rows, q, tile.first, tile.rows, heads, head, dim);
    float sums[PER_THREAD] = {}, max = -INFINITY, sum = 0.0f;
    for (int first = tile.start; first < tile.first + tile.rows; first += SIDE) {
        int rows = min(SIDE, tile.end - first);
        __syncthreads();
        fill(k_rows, k, first, rows, keys, key_head, dim);
        fill(v_rows, v, first, rows, keys, key_head, dim);
        __syncthreads();
        bool visible = first + j <= tile.first + i;
        float score = visible ? dot(q_rows + i * (dim + 1), k_rows + j * (dim + 1), dim) * scale : -INFINITY;
        scores[threadIdx.x] = score;
        __syncthreads();
        float new_max = max;
        for (int c = 0; c < SIDE; c++) new_max = fmaxf(new_max, scores[i * SIDE + c]);
        weights[threadIdx.x] = expf(score - new_max);
        __syncthreads();
        float shrink = expf(max - new_max);  // of the first tile, 0
        max = new_max;
        sum *= shrink;
        for (int c = 0; c < SIDE; c++) sum += weights[i * SIDE + c];
#pragma unroll
        for (int r = 0; r < PER_THREAD; r++) sums[r] *= shrink;
        add_rows(sums, weights + i * SIDE, v_rows, j, dim);
    }
    if (i >= tile.rows) return;
    put(out, sums, 1.0f / sum, tile.first + i, heads, head, dim, j);
    if (j == 0) lse[static_cast<long long>(tile.first + i) * heads + head] = max + logf(sum);
}

template <typename T>
__device__ inline void backward_queries(T* dq, const T* q, const T* k, const T* v, const T* dout, const float* lse, const float* delta,
                                        const unsigned* tiles, int heads, int keys, int dim, float scale) {
    DYNAMIC_SHARED(float, shared);
    int size = SIDE * (dim + 1);
    float *q_rows = shared, *k_rows = q_rows + size, *v_rows = k_rows + size, *d_rows = v_rows + size, *dscores = d_rows + size;
    Tile tile = tile_of(tiles, SIDE, blockIdx.x);
    int head = blockIdx.y, key_head = head / (heads / keys);
    int i = threadIdx.x / SIDE, j = threadIdx.x % SIDE;
    fill(q_rows, q, tile.first, tile.rows, heads, head, dim);
    fill(d_rows, dout, tile.first, tile.rows, heads, head, dim);
    long long place = static_cast<long long>(tile.first + min(i, tile.rows - 1)) * heads + head;
    float row_lse = lse[place], row_delta = delta[place], sums[PER_THREAD] = {};
    for (int first = tile.start; first < tile.first + tile.rows; first += SIDE) {
        int rows = min(SIDE, tile.end - first);
        __syncthreads();
        fill(k_rows, k, first, rows, keys, key_head, dim);
        fill(v_rows, v, first, rows, keys, key_head, dim);
        __syncthreads();
        float p = 0.0f, dp = 0.0f;
        if (first + j <= tile.first + i && i < tile.rows) {
            p = expf(dot(q_rows + i * (dim + 1), k_rows + j * (dim + 1), dim) * scale - row_lse);
            dp = dot(d_rows + i * (dim + 1), v_rows + j * (dim + 1), dim);
        }
        dscores[threadIdx.x] = p * (dp - row_delta) * scale;
        __syncthreads();
        add_rows(sums, dscores + i * SIDE, k_rows, j, dim);
    }
    if (i < tile.rows) put(dq, sums, 1.0f, tile.first + i, heads, head, dim, j);
}

template <typename T>
__device__ inline void backward_keys(T* dk, T* dv, const T* q, const T* k, const T* v, const T* dout, const float* lse, const float* delta,
                                     const unsigned* tiles, int heads, int keys, int dim, float scale) {
    DYNAMIC_SHARED(float, shared);
    int size = SIDE * (dim + 1);
    float *q_rows = shared, *k_rows = q_rows + size, *v_rows = k_rows + size, *d_rows = v_rows + size;
    float *weights = d_rows + size, *dscores = weights + SIDE * SIDE;
    Tile tile = tile_of(tiles, SIDE, blockIdx.x);
    int key_head = blockIdx.y, group = heads / keys;
    int i = threadIdx.x / SIDE, j = threadIdx.x % SIDE;  // key and query
    fill(k_rows, k, tile.first, tile.rows, keys, key_head, dim);
    fill(v_rows, v, tile.first, tile.rows, keys, key_head, dim);
    float dk_sums[PER_THREAD] = {}, dv_sums[PER_THREAD] = {};
    for (int head = key_head * group; head < (key_head + 1) * group; head++) {
        for (int first = tile.first; first < tile.end; first += SIDE) {
            int rows = min(SIDE, tile.end - first);
            __syncthreads();
            fill(q_rows, q, first, rows, heads, head, dim);
            fill(d_rows, dout, first, rows, heads, head, dim);
            __syncthreads();
            float p = 0.0f, ds = 0.0f;
            if (tile.first + i <= first + j && j < rows) {
                long long place = static_cast<long long>(first + j) * heads + head;
                p = expf(dot(k_rows + i * (dim + 1), q_rows + j * (dim + 1), dim) * scale - lse[place]);
                ds = p * (dot(v_rows + i * (dim + 1), d_rows + j * (dim + 1), dim) - delta[place]) * scale;
            }
            weights[threadIdx.x] = p;
            dscores[threadIdx.x] = ds;
            __syncthreads();
            add_rows(dv_sums, weights + i * SIDE, d_rows, j, dim);
            add_rows(dk_sums, dscores + i * SIDE, q_rows, j, dim);
        }
    }
    if (i >= tile.rows) return;
    put(dk, dk_sums, 1.0f, tile.first + i, keys, key_head, dim, j);
    put(dv, dv_sums, 1.0f, tile.first + i, keys, key_head, dim, j);
}

// delta[row] = Σ dout · out over one head of one token, by one warp: what the softmax's gradient subtracts.
template <typename T> __device__ inline void deltas(float* delta, const T* out, const T* dout, int rows, int dim) {
    int row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    if (row >= rows) return;
    float sum = 0.0f;
    for (int d = threadIdx.x % WARP; d < dim; d += WARP)
        sum += to_float(out[static_cast<long long>(row) * dim + d]) * to_float(dout[static_cast<long long>(row) * dim + d]);
    sum = warp_sum(sum);
    if (threadIdx.x % WARP == 0) delta[row] = sum;
}

}  // namespace attention

#define ATTENTION(T, suffix)                                                                                                  \
    KERNEL(256, attention_##suffix, T* out, float* lse, const T* q, const T* k, const T* v, const unsigned* tiles, int heads,  \
           int keys, int dim, float scale) {                                                                                   \
        attention::forward(out, lse, q, k, v, tiles, heads, keys, dim, scale);                                                 \
    }                                                                                                                          \
    KERNEL(256, attention_queries_##suffix, T* dq, const T* q, const T* k, const T* v, const T* dout, const float* lse,        \
           const float* delta, const unsigned* tiles, int heads, int keys, int dim, float scale) {                             \
        attention::backward_queries(dq, q, k, v, dout, lse, delta, tiles, heads, keys, dim, scale);                            \
    }                                                                                                                          \
    KERNEL(256, attention_keys_##suffix, T* dk, T* dv, const T* q, const T* k, const T* v, const T* dout, const float* lse,    \
           const float* delta, const unsigned* tiles, int heads, int keys, int dim, float scale) {                             \
        attention::backward_keys(dk, dv, q, k, v, dout, lse, delta, tiles, heads, keys, dim, scale);                           \
    }                                                                                                                          \
    KERNEL(128, attention_deltas_##suffix, float* delta, const T* out, const T* dout, int rows, int dim) {                     \
        attention::deltas(delta, out, dout, rows, dim);                                                                        \
    }
ATTENTION(float, f32)
ATTENTION(bf16, bf16)
#undef ATTENTION
