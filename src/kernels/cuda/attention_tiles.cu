//! Attention in bf16 on tensor cores, for head dimensions 64 and 128: causal, grouped-query, packed sequences.
//
// As attention.cu, in larger tiles. A block has four warps, each of 16 rows of the block's 64 queries (or keys, where dk and dv
// are summed), kept as fragments in registers; the other side passes by in tiles through shared memory, whose rows are padded by
// 16 bytes, so that the lanes' reads of pairs fall into different banks. Scores stay in registers: the sums of one product, rounded
// to bf16, are the first factor of the next. Exponentials are powers of 2, with log2(e) in the scale.
#include "attention.cu"
#include "tensor_core.cuh"

namespace attention_tiles {

using attention::Tile;
using tensor_core::load_transposed;
using tensor_core::multiply;
using tensor_core::pair;

constexpr int THREADS = 128;
constexpr int SIDE = 64;  // rows of a block
constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

template <int D> constexpr int STRIDE = D + 8;  // of rows in shared memory

// `count` rows of one head in shared memory, 16 bytes a thread at a time; rows that are not there are 0.
template <int D> __device__ inline void fill(bf16* shared, const bf16* from, int first, int rows, int count, int stride, int head) {
    for (int i = threadIdx.x; i < count * (D / 8); i += THREADS) {
        int row = i / (D / 8), d = i % (D / 8) * 8;
        Run<bf16, 8> run;
        if (row < rows) run = load<bf16, 8>(from + static_cast<long long>(first + row) * stride + head * D + d);
        else memset(&run, 0, sizeof(run));
        store<bf16, 8>(shared + row * STRIDE<D> + d, run);
    }
}

// The fragments of this warp's 16 rows of one head, from memory: rows g and g + 8 of the warp; rows that are not there are 0.
template <int D>
__device__ inline void fragments(uint32_t (&a)[D / 16][4], const bf16* from, int first, int rows, int stride, int head) {
    int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        bool there = row + 8 * lower < rows;
        const bf16* at = from + static_cast<long long>(first + row + 8 * lower) * stride + head * D + column;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            a[k][lower] = there ? pair(at + 16 * k) : 0;
            a[k][lower + 2] = there ? pair(at + 16 * k + 8) : 0;
        }
    }
}

// As `fragments`, of a tile in shared memory, at columns 16 k and after.
template <int D> __device__ inline void fragment(uint32_t (&a)[4], const bf16* shared, int k) {
    int lane = threadIdx.x % WARP;
    const bf16* at = shared + (threadIdx.x / WARP * 16 + lane / 4) * STRIDE<D> + 16 * k + lane % 4 * 2;
    a[0] = pair(at);
    a[1] = pair(at + 8 * STRIDE<D>);
    a[2] = pair(at + 8);
    a[3] = pair(at + 8 * STRIDE<D> + 8);
}

// c += a (8 rows of the tile from `row` on)ᵀ at columns 16 k and after.
template <int D> __device__ inline void multiply_rows(float (&c)[4], const uint32_t (&a)[4], const bf16* shared, int row, int k) {
    int lane = threadIdx.x % WARP;
    const bf16* at = shared + (row + lane / 4) * STRIDE<D> + 16 * k + lane % 4 * 2;
    multiply(c, a, pair(at), pair(at + 8));
}

// sums[16, D] += weights[16, N] · tile[N, D], the weights rounded to bf16.
template <int D, int N>
__device__ inline void add_tile(float (&sums)[D / 8][4], const float (&weights)[N / 8][4], const bf16* shared) {
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        const float(&left)[4] = weights[2 * k], (&right)[4] = weights[2 * k + 1];
        uint32_t a[4] = {pair(left[0], left[1]), pair(left[2], left[3]), pair(right[0], right[1]), pair(right[2], right[3])};
        const bf16* row = shared + (16 * k + lane % 16) * STRIDE<D> + lane / 16 * 8;
#pragma unroll
        for (int d = 0; d < D / 8; d += 2) {
            uint32_t b[4];  // rows 0 to 7 and 8 to 15 at eight columns, then at the next eight
            load_transposed(b, row + 8 * d);
            multiply(sums[d], a, b[0], b[1]);
            multiply(sums[d + 1], a, b[2], b[3]);
        }
    }
}

// Writes the warp's 16 rows of one head.
template <int D>
__device__ inline void put(bf16* to, const float (&sums)[D / 8][4], const float (&factors)[2], int first, int rows, int stride, int head) {
    int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4;
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        if (row + 8 * lower >= rows) continue;
        bf16* at = to + static_cast<long long>(first + row + 8 * lower) * stride + head * D + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < D / 8; d++)
            *reinterpret_cast<uint32_t*>(at + 8 * d) =
                pair(sums[d][2 * lower] * factors[lower], sums[d][2 * lower + 1] * factors[lower]);
    }
}

// Over the four lanes that share a row of sums.
__device__ inline float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ inline float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

template <int D>
__device__ inline void forward(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const unsigned* tiles, int q_stride,
                               int k_stride, int v_stride, int heads, int keys, float scale) {
    constexpr int N = 64;  // keys of a tile
    DYNAMIC_SHARED(bf16, k_rows);
    bf16* v_rows = k_rows + N * STRIDE<D>;
    Tile tile = attention::tile_of(tiles, SIDE);
    int head = blockIdx.y, key_head = head / (heads / keys);
    int lane = threadIdx.x % WARP, row = tile.first + threadIdx.x / WARP * 16 + lane / 4;  // and row + 8
    uint32_t q_fragments[D / 16][4];
    fragments<D>(q_fragments, q, tile.first, tile.rows, q_stride, head);
    float sums[D / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    for (int first = tile.start; first < tile.first + tile.rows; first += N) {
        int rows = min(N, tile.end - first);
        __syncthreads();
        fill<D>(k_rows, k, first, rows, N, k_stride, key_head);
        fill<D>(v_rows, v, first, rows, N, v_stride, key_head);
        __syncthreads();
        float p[N / 8][4] = {};
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int c = 0; c < D / 16; c++) multiply_rows<D>(p[n], q_fragments[c], k_rows, 8 * n, c);
        float shrink[2];
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            float new_max = max[lower];
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int c = 2 * lower; c < 2 * lower + 2; c++) {
                    int key = first + 8 * n + lane % 4 * 2 + c % 2;
                    p[n][c] = key <= row + 8 * lower ? p[n][c] * (scale * LOG2E) : -INFINITY;
                    new_max = fmaxf(new_max, p[n][c]);
                }
            new_max = row_max(new_max);  // finite: every query sees the first key of the first tile
            shrink[lower] = exp2f(max[lower] - new_max);
            max[lower] = new_max;
            sum[lower] *= shrink[lower];
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int c = 2 * lower; c < 2 * lower + 2; c++) {
                    p[n][c] = exp2f(p[n][c] - new_max);
                    sum[lower] += p[n][c];
                }
        }
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
            for (int c = 0; c < 4; c++) sums[d][c] *= shrink[c / 2];
        add_tile<D, N>(sums, p, v_rows);
    }
    float factors[2];
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        float whole = row_sum(sum[lower]);
        factors[lower] = 1.0f / whole;
        if (lane % 4 == 0 && row + 8 * lower < tile.first + tile.rows)
            lse[static_cast<long long>(row + 8 * lower) * heads + head] = max[lower] * LN2 + logf(whole);
    }
    put<D>(out, sums, factors, tile.first, tile.rows, heads * D, head);
}

template <int D>
__device__ inline void backward_queries(bf16* dq, const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                        const float* delta, const unsigned* tiles, int q_stride, int k_stride, int v_stride, int heads,
                                        int keys, float scale) {
    constexpr int N = D == 64 ? 64 : 32;  // keys of a tile: what registers allow
    DYNAMIC_SHARED(bf16, k_rows);
    bf16* v_rows = k_rows + N * STRIDE<D>;
    Tile tile = attention::tile_of(tiles, SIDE);
    int head = blockIdx.y, key_head = head / (heads / keys);
    int lane = threadIdx.x % WARP, row = tile.first + threadIdx.x / WARP * 16 + lane / 4;
    uint32_t q_fragments[D / 16][4], d_fragments[D / 16][4];
    fragments<D>(q_fragments, q, tile.first, tile.rows, q_stride, head);
    fragments<D>(d_fragments, dout, tile.first, tile.rows, heads * D, head);
    float row_lse[2], row_delta[2], sums[D / 8][4] = {};
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        bool there = row + 8 * lower < tile.first + tile.rows;
        long long place = static_cast<long long>(row + 8 * lower) * heads + head;
        row_lse[lower] = there ? lse[place] * LOG2E : INFINITY;  // probabilities of 0
        row_delta[lower] = there ? delta[place] : 0.0f;
    }
    for (int first = tile.start; first < tile.first + tile.rows; first += N) {
        int rows = min(N, tile.end - first);
        __syncthreads();
        fill<D>(k_rows, k, first, rows, N, k_stride, key_head);
        fill<D>(v_rows, v, first, rows, N, v_stride, key_head);
        __syncthreads();
        float p[N / 8][4] = {}, dp[N / 8][4] = {};
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int c = 0; c < D / 16; c++) {
                multiply_rows<D>(p[n], q_fragments[c], k_rows, 8 * n, c);
                multiply_rows<D>(dp[n], d_fragments[c], v_rows, 8 * n, c);
            }
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                int key = first + 8 * n + lane % 4 * 2 + c % 2;
                float weight = key <= row + c / 2 * 8 ? exp2f(p[n][c] * (scale * LOG2E) - row_lse[c / 2]) : 0.0f;
                p[n][c] = weight * (dp[n][c] - row_delta[c / 2]) * scale;
            }
        add_tile<D, N>(sums, p, k_rows);
    }
    const float factors[2] = {1.0f, 1.0f};
    put<D>(dq, sums, factors, tile.first, tile.rows, q_stride, head);
}

template <int D>
__device__ inline void backward_keys(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                     const float* delta, const unsigned* tiles, int q_stride, int k_stride, int v_stride, int heads,
                                     int keys, float scale) {
    constexpr int N = D == 64 ? 32 : 16;  // queries of a tile: what registers allow
    DYNAMIC_SHARED(bf16, k_rows);
    bf16 *v_rows = k_rows + SIDE * STRIDE<D>, *q_rows = v_rows + SIDE * STRIDE<D>, *d_rows = q_rows + N * STRIDE<D>;
    float *q_lse = reinterpret_cast<float*>(d_rows + N * STRIDE<D>), *q_delta = q_lse + N;
    Tile tile = attention::tile_of(tiles, SIDE);
    int key_head = blockIdx.y, group = heads / keys;
    int lane = threadIdx.x % WARP, row = tile.first + threadIdx.x / WARP * 16 + lane / 4;  // keys row and row + 8
    fill<D>(k_rows, k, tile.first, tile.rows, SIDE, k_stride, key_head);
    fill<D>(v_rows, v, tile.first, tile.rows, SIDE, v_stride, key_head);
    float dk_sums[D / 8][4] = {}, dv_sums[D / 8][4] = {};
    for (int head = key_head * group; head < (key_head + 1) * group; head++) {
        for (int first = tile.first; first < tile.end; first += N) {
            int rows = min(N, tile.end - first);
            __syncthreads();
            fill<D>(q_rows, q, first, rows, N, q_stride, head);
            fill<D>(d_rows, dout, first, rows, N, heads * D, head);
            if (threadIdx.x < N) {
                bool there = static_cast<int>(threadIdx.x) < rows;
                long long place = static_cast<long long>(first + threadIdx.x) * heads + head;
                q_lse[threadIdx.x] = there ? lse[place] * LOG2E : INFINITY;
                q_delta[threadIdx.x] = there ? delta[place] : 0.0f;
            }
            __syncthreads();
            float p[N / 8][4] = {}, dp[N / 8][4] = {};
#pragma unroll
            for (int c = 0; c < D / 16; c++) {
                uint32_t k_fragment[4], v_fragment[4];
                fragment<D>(k_fragment, k_rows, c);
                fragment<D>(v_fragment, v_rows, c);
#pragma unroll
                for (int n = 0; n < N / 8; n++) {
                    multiply_rows<D>(p[n], k_fragment, q_rows, 8 * n, c);
                    multiply_rows<D>(dp[n], v_fragment, d_rows, 8 * n, c);
                }
            }
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    int query = 8 * n + lane % 4 * 2 + c % 2;
                    bool visible = row + c / 2 * 8 <= first + query;
                    p[n][c] = visible ? exp2f(p[n][c] * (scale * LOG2E) - q_lse[query]) : 0.0f;
                    dp[n][c] = p[n][c] * (dp[n][c] - q_delta[query]) * scale;
                }
            add_tile<D, N>(dv_sums, p, d_rows);
            add_tile<D, N>(dk_sums, dp, q_rows);
        }
    }
    const float factors[2] = {1.0f, 1.0f};
    put<D>(dk, dk_sums, factors, tile.first, tile.rows, k_stride, key_head);
    put<D>(dv, dv_sums, factors, tile.first, tile.rows, v_stride, key_head);
}

}  // namespace attention_tiles

#define ATTENTION_TILES(D)                                                                                                    \
    KERNEL(128, attention_tiles_##D, bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v,                       \
           const unsigned* tiles, int q_stride, int k_stride, int v_stride, int heads, int keys, float scale) {                \
        attention_tiles::forward<D>(out, lse, q, k, v, tiles, q_stride, k_stride, v_stride, heads, keys, scale);               \
    }                                                                                                                          \
    KERNEL(128, attention_tiles_queries_##D, bf16* dq, const bf16* q, const bf16* k, const bf16* v, const bf16* dout,          \
           const float* lse, const float* delta, const unsigned* tiles, int q_stride, int k_stride, int v_stride, int heads,   \
           int keys, float scale) {                                                                                            \
        attention_tiles::backward_queries<D>(dq, q, k, v, dout, lse, delta, tiles, q_stride, k_stride, v_stride, heads, keys,  \
                                             scale);                                                                           \
    }                                                                                                                          \
    KERNEL(128, attention_tiles_keys_##D, bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const bf16* dout,   \
           const float* lse, const float* delta, const unsigned* tiles, int q_stride, int k_stride, int v_stride, int heads,   \
           int keys, float scale) {                                                                                            \
        attention_tiles::backward_keys<D>(dk, dv, q, k, v, dout, lse, delta, tiles, q_stride, k_stride, v_stride, heads, keys, \
                                          scale);                                                                              \
    }
ATTENTION_TILES(64)
ATTENTION_TILES(128)
#undef ATTENTION_TILES
