// direction_magnitude(x, r, m) = m (x + r) / norm(x + r), per sample; guided: both branches and their combination.
//
// The reduction needs the whole row before the first element can be written, so the data is read twice.
#include "launch.h"

using namespace vaccel;

// x, residual: [B, ...]; magnitude: [B] in fp32; returns [B, ...].
Tensor direction_magnitude_cuda(Tensor x, Tensor residual, Tensor magnitude) {
  return reduced_then_mapped(DirectionMagnitude{}, magnitude, x, residual);
}

// cond, uncond: the branches' residuals, [B, ...] like x; returns u + w (c - u) of the two, [B, ...].
Tensor direction_magnitude_guided_cuda(Tensor x, Tensor cond, Tensor uncond, Tensor magnitude, double scale) {
  return reduced_then_mapped(DirectionMagnitudeGuided{static_cast<float>(scale)}, magnitude, x, cond, uncond);
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CUDA, m) {
  m.impl("direction_magnitude", TORCH_BOX(&direction_magnitude_cuda));
  m.impl("direction_magnitude_guided", TORCH_BOX(&direction_magnitude_guided_cuda));
}
