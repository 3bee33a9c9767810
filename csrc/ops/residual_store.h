// residual_store(v, x): r <- v - x; with statistics also norm(v) and relative_l1(v, last), in the same pass.
#pragma once

namespace vaccel {

// v, x: one dtype and shape; out: contiguous, the same.
static void residual_store(Tensor v, Tensor x, Tensor out) { mapped(out, Difference{}, v, x); }

// last: as v, the v of the step before; returns [2, B] in fp32: norms, changes.
static Tensor residual_store_stats(Tensor v, Tensor x, Tensor last, Tensor out) {
  return reduced(DifferenceStats{}, &out, v, x, last);
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) {
  m.impl("residual_store", TORCH_BOX(&residual_store));
  m.impl("residual_store_stats", TORCH_BOX(&residual_store_stats));
}

}  // namespace vaccel
