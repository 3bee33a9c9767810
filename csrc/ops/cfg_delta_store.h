// cfg_delta_store(c, u): d <- u - c.
#pragma once

namespace vaccel {

// cond, uncond: one dtype and shape; out: contiguous, the same.
static void cfg_delta_store(Tensor cond, Tensor uncond, Tensor out) { mapped(out, Delta{}, cond, uncond); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) { m.impl("cfg_delta_store", TORCH_BOX(&cfg_delta_store)); }

}  // namespace vaccel
