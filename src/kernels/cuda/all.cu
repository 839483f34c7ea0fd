//! All kernels in one module, which the driver loads once.
#include "adamw.cu"
#include "attention.cu"
#include "attention_tiles.cu"
#include "cross_entropy.cu"
#include "elementwise.cu"
#include "norm.cu"
#include "rows.cu"
#include "weighted_sum.cu"
