// cfg_delta_reuse(c, d, w) = c + (1 - w) d: guidance from the conditional branch and the cached delta.
#pragma once

namespace vaccel {

// cond, delta: one dtype and shape; out: contiguous, the same.
static void cfg_delta_reuse(Tensor cond, Tensor delta, double scale, Tensor out) {
  mapped(out, GuidedByDelta{static_cast<float>(1 - scale)}, cond, delta);
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) { m.impl("cfg_delta_reuse", TORCH_BOX(&cfg_delta_reuse)); }

}  // namespace vaccel
