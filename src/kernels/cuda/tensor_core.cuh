//! Tensor cores by the warp: products of 16x16 by 16x8 fragments in bf16 with sums in f32, and loads of fragments.
//
// Fragments are those of PTX's mma.m16n8k16 ("Matrix Fragments for mma.m16n8k16 with floating point type"). With g = lane / 4 and
// t = lane % 4, a lane holds
//   a: four pairs, of row g and g + 8 at columns 2t, 2t + 1, then of the same rows at columns 2t + 8, 2t + 9;
//   b: two pairs, of column g at rows 2t, 2t + 1 and at rows 2t + 8, 2t + 9;
//   c: row g at columns 2t, 2t + 1, then row g + 8 there.
// The first of a pair lies in the lower half of its register.
#pragma once
#include "common.cuh"

namespace tensor_core {

__device__ inline uint32_t pair(float low, float high) {
#ifdef MIXPOOL_EMULATION
    return __float2bfloat16(low).bits | uint32_t(__float2bfloat16(high).bits) << 16;
#else
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&both);
#endif
}

// Two neighbouring values, from an even place.
__device__ inline uint32_t pair(const bf16* at) { return *reinterpret_cast<const uint32_t*>(at); }

// 2^x, 0 where that is below the smallest normal number.
__device__ inline float power_of_two(float x) {
#ifdef MIXPOOL_EMULATION
    return exp2f(x);
#else
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(power) : "f"(x));
    return power;
#endif
}

// c += a b.
__device__ inline void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef MIXPOOL_EMULATION
    struct Shown {
        uint32_t a[4], b[2];
    };
    emulation::Exchange<Shown> lanes({{a[0], a[1], a[2], a[3]}, {b0, b1}});
    auto half = [](uint32_t both, int which) { return __uint_as_float(which ? both & 0xffff0000u : both << 16); };
    int g = emulation::lane() / 4, t = emulation::lane() % 4;
    for (int k = 0; k < 16; k++) {
        const Shown& row = lanes.of(g * 4 + k % 8 / 2);
        float upper = half(row.a[k / 8 * 2], k % 2), lower = half(row.a[k / 8 * 2 + 1], k % 2);
        for (int n = 0; n < 2; n++) {
            float b = half(lanes.of((2 * t + n) * 4 + k % 8 / 2).b[k / 8], k % 2);
            c[n] += upper * b;
            c[2 + n] += lower * b;
        }
    }
#else
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// Four 8x8 matrices from shared memory: lane l names row l % 8 (16 bytes, aligned) of matrix l / 8 and is given, of each matrix,
// columns 2t and 2t + 1 of row g; or, TRANSPOSED, rows 2t and 2t + 1 of column g.
template <bool TRANSPOSED> __device__ inline void load(uint32_t (&r)[4], const bf16* row) {
#ifdef MIXPOOL_EMULATION
    emulation::Exchange<const bf16*> rows(row);
    int g = emulation::lane() / 4, t = emulation::lane() % 4;
    for (int m = 0; m < 4; m++)
        r[m] = TRANSPOSED ? rows.of(m * 8 + 2 * t)[g].bits | uint32_t(rows.of(m * 8 + 2 * t + 1)[g].bits) << 16
                          : rows.of(m * 8 + g)[2 * t].bits | uint32_t(rows.of(m * 8 + g)[2 * t + 1].bits) << 16;
    emulation::Exchange<int> done(0);  // the instruction has read before any lane goes on to write there
#else
    uint32_t at = static_cast<uint32_t>(__cvta_generic_to_shared(row));
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(at)
                     : "memory");
#endif
}

}  // namespace tensor_core
