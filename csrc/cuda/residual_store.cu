// residual_store(v, x): r <- v - x; with statistics also norm(v) and relative_l1(v, last), in the same pass.
#include "launch.h"

using namespace vaccel;

// v, x: one dtype and shape; out: contiguous, the same.
void residual_store_cuda(Tensor v, Tensor x, Tensor out) { mapped(out, Difference{}, v, x); }

// last: as v, the v of the step before; returns [2, B] in fp32: norms, changes.
Tensor residual_store_stats_cuda(Tensor v, Tensor x, Tensor last, Tensor out) {
  return reduced(DifferenceStats{}, &out, v, x, last);
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CUDA, m) {
  m.impl("residual_store", TORCH_BOX(&residual_store_cuda));
  m.impl("residual_store_stats", TORCH_BOX(&residual_store_stats_cuda));
}
