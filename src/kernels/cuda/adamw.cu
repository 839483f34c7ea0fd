//! AdamW: the norm of the gradient with the factor that clips it, and the update of all parameters, one launch each.
//
// Nothing goes back to the processor: the update reads the factor where the norm left it. A loss or norm that is not finite
// raises a flag, which stays; updates do nothing from then on, so the parameters are those before the failure.
#include "common.cuh"

namespace adamw {

constexpr int VALUES = 4;  // of one thread


}  // namespace adamw

// report: [loss, norm], in which the norm is set; control: [factor, failed]. The last block to finish adds up what the blocks
// left in `partials`, in their order. `arrived` is 0 before and after.
KERNEL(256, gradient_norm, double* report, float* control, double* partials, unsigned* arrived, const float* gradient, long long n,
       double clip) {
    __shared__ double scratch[256 / WARP];
    __shared__ bool is_last;
    double own = 0.0;
    long long thread = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x, threads = static_cast<long long>(gridDim.x) * blockDim.x;
    long long whole = reinterpret_cast<uintptr_t>(gradient) % 16 == 0 ? n / adamw::VALUES * adamw::VALUES : 0;
    for (long long i = thread * adamw::VALUES; i < whole; i += threads * adamw::VALUES) {
        Run<float, adamw::VALUES> run = load<float, adamw::VALUES>(gradient + i);
        for (int j = 0; j < adamw::VALUES; j++) own += static_cast<double>(run.at[j]) * run.at[j];
    }
    for (long long i = whole + thread; i < n; i += threads) own += static_cast<double>(gradient[i]) * gradient[i];
    own = block_sum(own, scratch);
    if (threadIdx.x == 0) {
        partials[blockIdx.x] = own;
        __threadfence();
        is_last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    own = 0.0;
    for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) own += __ldcg(partials + block);  // from where the other blocks' writes are
    double norm = sqrt(block_sum(own, scratch));
    if (threadIdx.x != 0) return;
    *arrived = 0;
    report[1] = norm;
    control[0] = clip > 0.0 ? static_cast<float>(fmin(clip / (norm + 1e-6), 1.0)) : 1.0f;
    if (!isfinite(norm) || !isfinite(report[0])) control[1] = 1.0f;
}

// parameters, moments and gradient: [n]; bf16_copy: [n] or null, the rounded parameters. bounds: [ranges], ascending: where
// tensors that decay give way to tensors that do not, and back; the first range decays.
KERNEL(256, adamw_step, float* parameters, float* first, float* second, const float* gradient, bf16* bf16_copy, const long long* bounds,
       int ranges, const float* control, long long n, float keep, float step_size, float root, float eps, float new1, float new2,
       float beta2) {
    long long at = (static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x) * adamw::VALUES;
    if (at >= n || control[1] != 0.0f) return;
    float factor = control[0];
    int low = 0, high = ranges;  // the first bound above `at`
    while (low < high) {
        int middle = (low + high) / 2;
        if (bounds[middle] <= at) low = middle + 1;
        else high = middle;
    }
    auto update = [&](long long i, float& p, float& m, float& v, float g) {
        while (low < ranges && bounds[low] <= i) low++;
        g *= factor;
        m += (g - m) * new1;
        v = v * beta2 + g * g * new2;
        p = p * (low % 2 == 0 ? keep : 1.0f) - step_size * (m / (sqrtf(v) / root + eps));
    };
    if (at + adamw::VALUES <= n) {
        Run<float, 4> p = load<float, 4>(parameters + at), m = load<float, 4>(first + at), v = load<float, 4>(second + at);
        Run<float, 4> g = load<float, 4>(gradient + at);
        for (int j = 0; j < 4; j++) update(at + j, p.at[j], m.at[j], v.at[j], g.at[j]);
        store<float, 4>(parameters + at, p);
        store<float, 4>(first + at, m);
        store<float, 4>(second + at, v);
        if (bf16_copy) {
            Run<bf16, 4> rounded;
            for (int j = 0; j < 4; j++) rounded.at[j] = from_float<bf16>(p.at[j]);
            store<bf16, 4>(bf16_copy + at, rounded);
        }
    } else {
        for (long long i = at; i < n; i++) {
            update(i, parameters[i], first[i], second[i], gradient[i]);
            if (bf16_copy) bf16_copy[i] = from_float<bf16>(parameters[i]);
        }
    }
}
