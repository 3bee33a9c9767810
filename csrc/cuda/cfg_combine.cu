// cfg_combine(c, u, w) = u + w (c - u), each operation rounded on its own: in fp32 the bits of eager torch.
#include "launch.h"

using namespace vaccel;

// cond, uncond: one dtype and shape; out: contiguous, the same.
void cfg_combine_cuda(Tensor cond, Tensor uncond, double scale, Tensor out) {
  mapped(out, Guided{static_cast<float>(scale)}, cond, uncond);
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CUDA, m) { m.impl("cfg_combine", TORCH_BOX(&cfg_combine_cuda)); }
