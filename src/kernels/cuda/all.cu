//! All kernels in one module, which the driver loads once.
#include "norm.cu"
#include "weighted_sum.cu"
