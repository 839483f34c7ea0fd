//! Attention in bf16 on tensor cores, for head dimensions 64 and 128: causal, grouped-query, packed sequences.
//
// As attention.cu, in larger tiles. A block has four warps, each of 16 rows of the block's 64 queries (or keys, where dk and dv
// are summed); the other side passes by in tiles through shared memory, two stages of it: while one tile is computed with, the next
// is copied. Rows there are padded by 16 bytes, so that the eight rows of a fragment's load lie in different banks. Scores stay in
// registers: the sums of one product, rounded to bf16, are the first factor of the next. Exponentials are powers of 2, with log2(e)
// in the scale, which is applied as the maximum is taken off: one multiply-add and one power for each score. Only tiles on the
// diagonal are masked.
#include "async_copy.cuh"
#include "attention.cu"
#include "tensor_core.cuh"

namespace attention_tiles {

using attention::Tile;
using tensor_core::multiply;
using tensor_core::pair;
using tensor_core::power_of_two;

constexpr int THREADS = 128;
constexpr int SIDE = 64;  // rows of a block
constexpr float LOG2E = 1.4426950408889634f;

template <int D> constexpr int STRIDE = D + 8;  // of rows in shared memory

// Where a row of one head begins.
template <int D> __device__ inline long long place(int row, int heads, int head) {
    return (static_cast<long long>(row) * heads + head) * D;
}

// Queues copies of a tile of N rows of one head, from its first row on, 16 bytes a thread at a time; rows that are not there are 0.
template <int D, int N> __device__ inline void queue_tile(bf16* shared, const bf16* first, int rows, int heads) {
    constexpr int PIECES = D / 8, AT_ONCE = THREADS / PIECES;
    int row = threadIdx.x / PIECES, d = threadIdx.x % PIECES * 8;
    shared += row * STRIDE<D> + d;
    first += d;
#pragma unroll
    for (int i = 0; i < N; i += AT_ONCE) {
        bool there = row + i < rows;
        async_copy::queue<16>(shared + i * STRIDE<D>, first + (there ? place<D>(row + i, heads, 0) : 0), there);
    }
}

// The first factors of this warp's 16 rows of one head, from memory: rows g and g + 8 of the warp; rows that are not there are 0.
template <int D>
__device__ inline void fragments(uint32_t (&a)[D / 16][4], const bf16* from, int first, int rows, int heads, int head) {
    int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4, column = lane % 4 * 2;
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        bool there = row + 8 * lower < rows;
        const bf16* at = from + place<D>(first + (there ? row + 8 * lower : 0), heads, head) + column;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            a[k][lower] = there ? pair(at + 16 * k) : 0;
            a[k][lower + 2] = there ? pair(at + 16 * k + 8) : 0;
        }
    }
}

// A first factor: this warp's 16 rows of a tile in shared memory, at columns 16 k and after.
template <int D> __device__ inline void fragment(uint32_t (&a)[4], const bf16* shared, int k) {
    int lane = threadIdx.x % WARP;
    tensor_core::load<false>(a, shared + (threadIdx.x / WARP * 16 + lane % 16) * STRIDE<D> + 16 * k + lane / 16 * 8);
}

// products[16, N] += a[16, 32] · tile[N, D]ᵀ, over columns 16 k to 16 k + 31.
template <int D, int N>
__device__ inline void add_products(float (&products)[N / 8][4], const uint32_t (&a0)[4], const uint32_t (&a1)[4], const bf16* shared,
                                    int k) {
    int lane = threadIdx.x % WARP;
    const bf16* row = shared + lane % 8 * STRIDE<D> + 16 * k + lane / 8 * 8;
#pragma unroll
    for (int n = 0; n < N / 8; n++) {
        uint32_t b[4];  // columns 0 to 7, 8 to 15, 16 to 23, 24 to 31 of eight rows
        tensor_core::load<false>(b, row + 8 * n * STRIDE<D>);
        multiply(products[n], a0, b[0], b[1]);
        multiply(products[n], a1, b[2], b[3]);
    }
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
            tensor_core::load<true>(b, row + 8 * d);
            multiply(sums[d], a, b[0], b[1]);
            multiply(sums[d + 1], a, b[2], b[3]);
        }
    }
}

// Calls each(score, lower, column) for the scores of a lane: those of row g, then, `lower`, of row g + 8; columns of the tile.
template <int N, typename F> __device__ inline void each_score(float (&scores)[N / 8][4], F each) {
    int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N / 8; n++)
#pragma unroll
        for (int c = 0; c < 4; c++) each(scores[n][c], c / 2, 8 * n + column + c % 2);
}

// Writes the warp's 16 rows of one head.
template <int D>
__device__ inline void put(bf16* to, const float (&sums)[D / 8][4], const float (&factors)[2], int first, int rows, int heads, int head) {
    int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4;
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        if (row + 8 * lower >= rows) continue;
        bf16* at = to + place<D>(first + row + 8 * lower, heads, head) + lane % 4 * 2;
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

// Calls each(first, keys, values) for the tiles of N keys that a tile of queries sees, in order; both lie in shared memory.
template <int D, int N, typename F>
__device__ inline void each_tile_of_keys(const bf16* k, const bf16* v, Tile tile, int keys, int key_head, F each) {
    DYNAMIC_SHARED(bf16, shared);
    constexpr int LENGTH = N * STRIDE<D>;
    auto queue = [=](int first, int stage) {
        long long at = place<D>(first, keys, key_head);
        queue_tile<D, N>(shared + 2 * stage * LENGTH, k + at, tile.end - first, keys);
        queue_tile<D, N>(shared + (2 * stage + 1) * LENGTH, v + at, tile.end - first, keys);
    };
    queue(tile.start, 0);
    int end = tile.first + tile.rows;
    for (int first = tile.start, stage = 0; first < end; first += N, stage = 1 - stage) {
        async_copy::wait();
        __syncthreads();  // this tile is there, and nobody reads the other stage any more
        if (first + N < end) queue(first + N, 1 - stage);
        each(first, shared + 2 * stage * LENGTH, shared + (2 * stage + 1) * LENGTH);
    }
}

template <int D>
__device__ inline void forward(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const unsigned* tiles, int heads, int keys,
                               float scale) {
    constexpr int N = 64;  // keys of a tile
    Tile tile = attention::tile_of(tiles, SIDE, gridDim.x - 1 - blockIdx.x);  // those that see most keys begin first
    int head = blockIdx.y, key_head = head / (heads / keys);
    int lane = threadIdx.x % WARP, warp_row = tile.first + threadIdx.x / WARP * 16, row = warp_row + lane / 4;  // and row + 8
    uint32_t q_fragments[D / 16][4];
    fragments<D>(q_fragments, q, tile.first, tile.rows, heads, head);
    float sums[D / 8][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {}, factor = scale * LOG2E;
    each_tile_of_keys<D, N>(k, v, tile, keys, key_head, [&](int first, const bf16* k_rows, const bf16* v_rows) {
        float p[N / 8][4] = {};
#pragma unroll
        for (int c = 0; c < D / 16; c += 2) add_products<D, N>(p, q_fragments[c], q_fragments[c + 1], k_rows, c);
        if (first + N - 1 > warp_row)
            each_score<N>(p, [=](float& p, int lower, int key) { p = first + key <= row + 8 * lower ? p : -INFINITY; });
        float new_max[2] = {max[0], max[1]}, shrink[2], offset[2];
        each_score<N>(p, [&](float& p, int lower, int) { new_max[lower] = fmaxf(new_max[lower], p); });
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            new_max[lower] = row_max(new_max[lower]);  // finite: every query sees the first key of the first tile
            shrink[lower] = power_of_two((max[lower] - new_max[lower]) * factor);
            offset[lower] = -new_max[lower] * factor;
            max[lower] = new_max[lower];
            sum[lower] *= shrink[lower];
        }
        each_score<N>(p, [&](float& p, int lower, int) {
            p = power_of_two(fmaf(p, factor, offset[lower]));
            sum[lower] += p;
        });
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
            for (int c = 0; c < 4; c++) sums[d][c] *= shrink[c / 2];
        add_tile<D, N>(sums, p, v_rows);
    });
    float factors[2];
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        float whole = row_sum(sum[lower]);
        factors[lower] = 1.0f / whole;
        if (lane % 4 == 0 && row + 8 * lower < tile.first + tile.rows)
            lse[static_cast<long long>(row + 8 * lower) * heads + head] = max[lower] * scale + logf(whole);
    }
    put<D>(out, sums, factors, tile.first, tile.rows, heads, head);
}

// Σ out · dout over the row of a fragment: what the softmax's gradient subtracts.
template <int D> __device__ inline void deltas(float (&sums)[2], const uint32_t (&out)[D / 16][4], const uint32_t (&dout)[D / 16][4]) {
    auto low = [](uint32_t both) { return __uint_as_float(both << 16); };
    auto high = [](uint32_t both) { return __uint_as_float(both & 0xffff0000u); };
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        float sum = 0.0f;
#pragma unroll
        for (int k = 0; k < D / 16; k++)
#pragma unroll
            for (int i = lower; i < 4; i += 2) sum += low(out[k][i]) * low(dout[k][i]) + high(out[k][i]) * high(dout[k][i]);
        sums[lower] = row_sum(sum);
    }
}

// dq, and delta for `backward_keys`, which runs after it.
template <int D>
__device__ inline void backward_queries(bf16* dq, float* delta, const bf16* q, const bf16* k, const bf16* v, const bf16* out,
                                        const bf16* dout, const float* lse, const unsigned* tiles, int heads, int keys, float scale) {
    constexpr int N = D == 64 ? 64 : 32;  // keys of a tile: what registers allow
    Tile tile = attention::tile_of(tiles, SIDE, gridDim.x - 1 - blockIdx.x);
    int head = blockIdx.y, key_head = head / (heads / keys);
    int lane = threadIdx.x % WARP, warp_row = tile.first + threadIdx.x / WARP * 16, row = warp_row + lane / 4;
    uint32_t q_fragments[D / 16][4], d_fragments[D / 16][4];
    fragments<D>(q_fragments, q, tile.first, tile.rows, heads, head);
    fragments<D>(d_fragments, dout, tile.first, tile.rows, heads, head);
    float offset[2], row_delta[2], sums[D / 8][4] = {}, factor = scale * LOG2E;
    {
        uint32_t out_fragments[D / 16][4];
        fragments<D>(out_fragments, out, tile.first, tile.rows, heads, head);
        deltas<D>(row_delta, out_fragments, d_fragments);
    }
#pragma unroll
    for (int lower = 0; lower < 2; lower++) {
        bool there = row + 8 * lower < tile.first + tile.rows;
        long long at = static_cast<long long>(row + 8 * lower) * heads + head;
        offset[lower] = there ? -lse[at] * LOG2E : 0.0f;
        if (there && lane % 4 == 0) delta[at] = row_delta[lower];
    }
    each_tile_of_keys<D, N>(k, v, tile, keys, key_head, [&](int first, const bf16* k_rows, const bf16* v_rows) {
        float p[N / 8][4] = {}, dp[N / 8][4] = {};
#pragma unroll
        for (int c = 0; c < D / 16; c += 2) {
            add_products<D, N>(p, q_fragments[c], q_fragments[c + 1], k_rows, c);
            add_products<D, N>(dp, d_fragments[c], d_fragments[c + 1], v_rows, c);
        }
        if (first + N - 1 > warp_row)
            each_score<N>(p, [=](float& p, int lower, int key) { p = first + key <= row + 8 * lower ? p : -INFINITY; });
        each_score<N>(p, [&](float& p, int lower, int) { p = power_of_two(fmaf(p, factor, offset[lower])); });
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) p[n][c] *= dp[n][c] - row_delta[c / 2];
        add_tile<D, N>(sums, p, k_rows);
    });
    const float factors[2] = {scale, scale};
    put<D>(dq, sums, factors, tile.first, tile.rows, heads, head);
}

template <int D>
__device__ inline void backward_keys(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const bf16* dout, const float* lse,
                                     const float* delta, const unsigned* tiles, int heads, int keys, float scale) {
    constexpr int N = D == 64 ? 32 : 16;  // queries of a tile: what registers allow
    constexpr int LENGTH = N * STRIDE<D>;
    DYNAMIC_SHARED(bf16, k_rows);
    bf16 *v_rows = k_rows + SIDE * STRIDE<D>, *passing = v_rows + SIDE * STRIDE<D>;  // two stages of queries and of dout
    float* passing_lse = reinterpret_cast<float*>(passing + 4 * LENGTH);             // two stages of lse and of delta
    Tile tile = attention::tile_of(tiles, SIDE, blockIdx.x);
    int key_head = blockIdx.y, group = heads / keys;
    int lane = threadIdx.x % WARP, warp_row = tile.first + threadIdx.x / WARP * 16, row = warp_row + lane / 4;  // keys row and row + 8
    auto queue = [=](int head, int first, int stage) {
        int rows = tile.end - first;
        queue_tile<D, N>(passing + 2 * stage * LENGTH, q + place<D>(first, heads, head), rows, heads);
        queue_tile<D, N>(passing + (2 * stage + 1) * LENGTH, dout + place<D>(first, heads, head), rows, heads);
        if (threadIdx.x < N) {
            bool there = static_cast<int>(threadIdx.x) < rows;
            long long at = static_cast<long long>(first + (there ? threadIdx.x : 0)) * heads + head;
            async_copy::queue<4>(passing_lse + 2 * stage * N + threadIdx.x, lse + at, there);
            async_copy::queue<4>(passing_lse + (2 * stage + 1) * N + threadIdx.x, delta + at, there);
        }
    };
    queue_tile<D, SIDE>(k_rows, k + place<D>(tile.first, keys, key_head), tile.rows, keys);
    queue_tile<D, SIDE>(v_rows, v + place<D>(tile.first, keys, key_head), tile.rows, keys);
    queue(key_head * group, tile.first, 0);
    float dk_sums[D / 8][4] = {}, dv_sums[D / 8][4] = {}, factor = scale * LOG2E;
    int last = (key_head + 1) * group - 1;
    for (int head = key_head * group, first = tile.first, stage = 0; head <= last; stage = 1 - stage) {
        bool ends = first + N >= tile.end;  // of this head's queries
        int next_head = head + ends, next = ends ? tile.first : first + N;
        async_copy::wait();
        __syncthreads();  // this tile is there, and nobody reads the other stage any more
        if (next_head <= last) queue(next_head, next, 1 - stage);
        const bf16 *q_rows = passing + 2 * stage * LENGTH, *d_rows = q_rows + LENGTH;
        const float *q_lse = passing_lse + 2 * stage * N, *q_delta = q_lse + N;
        float p[N / 8][4] = {}, dp[N / 8][4] = {};
#pragma unroll
        for (int c = 0; c < D / 16; c += 2) {
            uint32_t a[2][4];
            fragment<D>(a[0], k_rows, c);
            fragment<D>(a[1], k_rows, c + 1);
            add_products<D, N>(p, a[0], a[1], q_rows, c);
            fragment<D>(a[0], v_rows, c);
            fragment<D>(a[1], v_rows, c + 1);
            add_products<D, N>(dp, a[0], a[1], d_rows, c);
        }
        if (warp_row + 15 > first)
            each_score<N>(p, [=](float& p, int lower, int query) { p = row + 8 * lower <= first + query ? p : -INFINITY; });
#pragma unroll
        for (int n = 0; n < N / 8; n++) {  // queries that are not there have dout, q and delta of 0, and so add nothing
            Run<float, 2> lse = load<float, 2>(q_lse + 8 * n + lane % 4 * 2), delta = load<float, 2>(q_delta + 8 * n + lane % 4 * 2);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                p[n][c] = power_of_two(fmaf(p[n][c], factor, -lse.at[c % 2] * LOG2E));
                dp[n][c] = p[n][c] * (dp[n][c] - delta.at[c % 2]);
            }
        }
        add_tile<D, N>(dv_sums, p, d_rows);
        add_tile<D, N>(dk_sums, dp, q_rows);
        head = next_head;
        first = next;
    }
    const float factors[2] = {scale, scale}, ones[2] = {1.0f, 1.0f};
    put<D>(dk, dk_sums, factors, tile.first, tile.rows, keys, key_head);
    put<D>(dv, dv_sums, ones, tile.first, tile.rows, keys, key_head);
}

}  // namespace attention_tiles

// Blocks on a multiprocessor: what registers allow without spills.
#define ATTENTION_TILES(D, blocks)                                                                                            \
    RESIDENT_KERNEL(128, blocks, attention_tiles_##D, bf16* out, float* lse, const bf16* q, const bf16* k,                    \
                    const bf16* v, const unsigned* tiles, int heads, int keys, float scale) {                                 \
        attention_tiles::forward<D>(out, lse, q, k, v, tiles, heads, keys, scale);                                            \
    }                                                                                                                         \
    RESIDENT_KERNEL(128, blocks, attention_tiles_queries_##D, bf16* dq, float* delta, const bf16* q, const bf16* k,           \
                    const bf16* v, const bf16* out, const bf16* dout, const float* lse, const unsigned* tiles, int heads,     \
                    int keys, float scale) {                                                                                  \
        attention_tiles::backward_queries<D>(dq, delta, q, k, v, out, dout, lse, tiles, heads, keys, scale);                  \
    }                                                                                                                         \
    RESIDENT_KERNEL(128, blocks, attention_tiles_keys_##D, bf16* dk, bf16* dv, const bf16* q, const bf16* k,                  \
                    const bf16* v, const bf16* dout, const float* lse, const float* delta, const unsigned* tiles, int heads,  \
                    int keys, float scale) {                                                                                  \
        attention_tiles::backward_keys<D>(dk, dv, q, k, v, dout, lse, delta, tiles, heads, keys, scale);                      \
    }
ATTENTION_TILES(64, 3)
ATTENTION_TILES(128, 2)
#undef ATTENTION_TILES
