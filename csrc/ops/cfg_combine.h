// cfg_combine(c, u, w) = u + w (c - u), each operation rounded on its own: in fp32 the bits of eager torch.
#pragma once

namespace vaccel {

// cond, uncond: one dtype and shape; out: contiguous, the same.
static void cfg_combine(Tensor cond, Tensor uncond, double scale, Tensor out) {
  mapped(out, Guided{static_cast<float>(scale)}, cond, uncond);
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) { m.impl("cfg_combine", TORCH_BOX(&cfg_combine)); }

}  // namespace vaccel
