// cfg_delta_store(c, u): d <- u - c.
#include "launch.h"

using namespace vaccel;

// cond, uncond: one dtype and shape; out: contiguous, the same.
void cfg_delta_store_cuda(Tensor cond, Tensor uncond, Tensor out) { mapped(out, Delta{}, cond, uncond); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, CUDA, m) { m.impl("cfg_delta_store", TORCH_BOX(&cfg_delta_store_cuda)); }
