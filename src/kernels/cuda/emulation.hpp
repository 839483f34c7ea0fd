//! Emulation of CUDA on the processor, so that tests run the very text of the kernels where there is no GPU.
//
// Threads of a block are fibers of one thread of the operating system; blocks run one after another. Barriers and warp
// collectives are exact; what is not modelled is what correct kernels do not rely on (the order of warps, races, time).
// A barrier that not all threads reach ends the program with a message, as it would hang a GPU.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>

#define __device__
#define __global__
#define __forceinline__ inline __attribute__((always_inline))
#define __restrict__ __restrict
#define __shared__ static thread_local
#define __align__(n) alignas(n)

struct Index {
    unsigned x, y, z;
};
static thread_local Index threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

// What the lanes of a warp show each other: two sets, used in turn, so that one barrier an exchange is enough.
struct Warp {
    uint64_t shown[2][32][4];
    unsigned arrived, generation;
};

struct Fiber;
void wait_for_block();
void wait_for_warp();
unsigned char* dynamic_shared();
Warp& warp();
unsigned lane();
unsigned& turn();  // exchanges of this lane so far

// Every lane shows a value and then reads any other's.
template <typename T> struct Exchange {
    static_assert(sizeof(T) <= 32, "a lane shows at most 32 bytes");
    const uint64_t (*shown)[4];
    explicit Exchange(const T& value) {
        uint64_t(*set)[4] = warp().shown[turn()++ % 2];
        memcpy(set[lane()], &value, sizeof(T));
        shown = set;
        wait_for_warp();
    }
    const T& of(unsigned other) const { return *reinterpret_cast<const T*>(shown[other]); }
};

typedef void (*Invoke)(void** arguments);

// A kernel that can be launched by name; all of them form a list.
struct Registered {
    const char* name;
    Invoke invoke;
    unsigned max_threads, n_arguments;
    unsigned sizes[32];
    Registered* next;
    static Registered* first;
    template <typename... A>
    Registered(const char* name, unsigned max_threads, Invoke invoke, void (*)(A...))
        : name(name), invoke(invoke), max_threads(max_threads), n_arguments(sizeof...(A)), sizes{sizeof(A)...}, next(first) {
        first = this;
    }
};

template <auto F, typename... A, size_t... I> void call(void (*)(A...), void** arguments, std::index_sequence<I...>) {
    F(*static_cast<A*>(arguments[I])...);
}
template <typename... A> constexpr auto indices(void (*)(A...)) { return std::index_sequence_for<A...>(); }
template <auto F> void invoke(void** arguments) { call<F>(F, arguments, indices(F)); }

}  // namespace emulation

#define KERNEL(threads, name, ...)                                                                                       \
    static void name(__VA_ARGS__);                                                                                       \
    static emulation::Registered registered_##name(#name, threads, &emulation::invoke<&name>, &name);                    \
    static void name(__VA_ARGS__)
#define RESIDENT_KERNEL(threads, blocks, name, ...) KERNEL(threads, name, __VA_ARGS__)
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(emulation::dynamic_shared())

inline void __syncthreads() { emulation::wait_for_block(); }
inline void __syncwarp(unsigned = 0xffffffffu) { emulation::wait_for_warp(); }
inline void __threadfence() {}
template <typename T> inline T __ldcg(const T* at) { return *at; }

template <typename T> inline T __shfl_xor_sync(unsigned, T value, int mask) {
    return emulation::Exchange<T>(value).of(emulation::lane() ^ mask);
}
template <typename T> inline T __shfl_sync(unsigned, T value, int source) {
    return emulation::Exchange<T>(value).of(source);
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
    unsigned before = *at;
    *at += value;
    return before;
}

struct __nv_bfloat16 {
    uint16_t bits;
};
struct __half {
    uint16_t bits;
};

inline float __uint_as_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __bfloat162float(__nv_bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
// To the nearest, ties to even; a NaN stays one.
inline __nv_bfloat16 __float2bfloat16(float x) {
    uint32_t bits = __float_as_uint(x);
    if (x != x) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline __half __ushort_as_half(uint16_t bits) { return {bits}; }
inline float __half2float(__half x) {
    uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, sign = uint32_t(x.bits & 0x8000) << 16;
    float value = __uint_as_float(magnitude) * __uint_as_float(0x77800000);  // 2^112
    if (magnitude >= 0x0f800000) value = __uint_as_float(magnitude | 0x7f800000);
    return __uint_as_float(__float_as_uint(value) | sign);
}
inline double __dmul_rn(double a, double b) {
    volatile double product = a * b;  // rounded before it is added
    return product;
}
inline float __expf(float x) { return expf(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
