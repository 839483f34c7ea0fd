//! Element by element: SwiGLU, GELU, biases, sums and copies.
//
// A thread takes 16 bytes of each operand where all are aligned, one value otherwise; neighbouring threads take neighbours. Gate
// and up may be columns of one tensor: their rows, and those of their gradients, lie `stride` values apart.
#include "common.cuh"

namespace elementwise {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// GELU and its derivative (Hendrycks and Gimpel 2016): x Φ(x), or by the tanh form, whose (1 + tanh u) / 2 is the sigmoid of 2u.
__device__ inline void gelu(bool tanh_form, float x, float& value, float& slope) {
    const float root_2_over_pi = 0.79788456080286535588f, cubic = 0.044715f;
    if (tanh_form) {
        float s = sigmoid(2.0f * root_2_over_pi * x * (1.0f + cubic * x * x));
        value = x * s;
        slope = s + x * s * (1.0f - s) * 2.0f * root_2_over_pi * (1.0f + 3.0f * cubic * x * x);
    } else {
        float phi = 0.5f + 0.5f * erff(x * 0.70710678118654752440f);
        value = x * phi;
        slope = phi + x * 0.5f * root_2_over_pi * expf(-0.5f * x * x);
    }
}

// Calls each(index of a first value, how many) for the values of this thread: N at once, or the single ones at the end.
template <int N, typename F> __device__ inline void runs(long long n, F each) {
    long long at = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    if (at < n) each(at);
}

__device__ inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// Calls each(index of a first value in packed rows, and in rows `stride` apart) for the values of this thread.
template <int N, typename F> __device__ inline void strided_runs(int n, int width, int stride, F each) {
    unsigned run = blockIdx.x * blockDim.x + threadIdx.x, of_row = width / N;
    if (run >= static_cast<unsigned>(n) * of_row) return;
    long long at = static_cast<long long>(run) * N;
    each(at, at + static_cast<long long>(run / of_row) * (stride - width));
}

template <typename T, int N> __device__ inline void swiglu(T* out, const T* gate, const T* up, int n, int width, int stride) {
    strided_runs<N>(n, width, stride, [=](long long at, long long from) {
        Run<T, N> g = load<T, N>(gate + from), u = load<T, N>(up + from), o;
        for (int j = 0; j < N; j++) {
            float x = to_float(g.at[j]);
            o.at[j] = from_float<T>(x * sigmoid(x) * to_float(u.at[j]));
        }
        store<T, N>(out + at, o);
    });
}

template <typename T, int N>
__device__ inline void swiglu_backward(T* dgate, T* dup, const T* gate, const T* up, const T* dout, int n, int width, int stride) {
    strided_runs<N>(n, width, stride, [=](long long at, long long from) {
        Run<T, N> g = load<T, N>(gate + from), u = load<T, N>(up + from), d = load<T, N>(dout + at), dg, du;
        for (int j = 0; j < N; j++) {
            float x = to_float(g.at[j]), y = to_float(d.at[j]), s = sigmoid(x);
            dg.at[j] = from_float<T>(y * to_float(u.at[j]) * s * (x * (1.0f - s) + 1.0f));
            du.at[j] = from_float<T>(y * x * s);
        }
        store<T, N>(dgate + from, dg);
        store<T, N>(dup + from, du);
    });
}

// y = gelu(x), or the gradient dy gelu′(x) where there is a dy.
template <typename T, int N> __device__ inline void gelus(T* y, const T* x, const T* dy, int tanh_form, long long n) {
    runs<N>(n, [=](long long at) {
        Run<T, N> in = load<T, N>(x + at), d = in, out;
        if (dy) d = load<T, N>(dy + at);
        for (int j = 0; j < N; j++) {
            float value, slope;
            gelu(tanh_form, to_float(in.at[j]), value, slope);
            out.at[j] = from_float<T>(dy ? to_float(d.at[j]) * slope : value);
        }
        store<T, N>(y + at, out);
    });
}

// y[i] += x[i modulo width]: a sum of tensors, or a bias added to every row.
template <typename T, int N> __device__ inline void add(T* y, const T* x, long long n, long long width) {
    runs<N>(n, [=](long long at) {
        Run<T, N> sum = load<T, N>(y + at), other = load<T, N>(x + at % width);
        for (int j = 0; j < N; j++) sum.at[j] = from_float<T>(to_float(sum.at[j]) + to_float(other.at[j]));
        store<T, N>(y + at, sum);
    });
}

}  // namespace elementwise

// `wide` is what the launch was made for: WIDE<T> values a thread, all of n and width multiples of it, or 1.
#define ELEMENTWISE(T, suffix)                                                                                                \
    KERNEL(256, swiglu_##suffix, T* out, const T* gate, const T* up, int n, int width, int stride, int wide) {                 \
        if (wide) elementwise::swiglu<T, WIDE<T>>(out, gate, up, n, width, stride);                                            \
        else elementwise::swiglu<T, 1>(out, gate, up, n, width, stride);                                                       \
    }                                                                                                                          \
    KERNEL(256, swiglu_backward_##suffix, T* dgate, T* dup, const T* gate, const T* up, const T* dout, int n, int width,       \
           int stride, int wide) {                                                                                             \
        if (wide) elementwise::swiglu_backward<T, WIDE<T>>(dgate, dup, gate, up, dout, n, width, stride);                      \
        else elementwise::swiglu_backward<T, 1>(dgate, dup, gate, up, dout, n, width, stride);                                 \
    }                                                                                                                          \
    KERNEL(256, gelu_##suffix, T* y, const T* x, const T* dy, int tanh_form, long long n, int wide) {                          \
        if (wide) elementwise::gelus<T, WIDE<T>>(y, x, dy, tanh_form, n);                                                      \
        else elementwise::gelus<T, 1>(y, x, dy, tanh_form, n);                                                                 \
    }                                                                                                                          \
    KERNEL(256, add_##suffix, T* y, const T* x, long long n, long long width, int wide) {                                      \
        if (wide) elementwise::add<T, WIDE<T>>(y, x, n, width);                                                                \
        else elementwise::add<T, 1>(y, x, n, width);                                                                           \
    }
ELEMENTWISE(float, f32)
ELEMENTWISE(bf16, bf16)
#undef ELEMENTWISE

KERNEL(256, fill_zero, float* x, long long n) {
    elementwise::runs<1>(n, [=](long long at) { x[at] = 0.0f; });
}
