// direction_magnitude(x, r, m) = m (x + r) / norm(x + r), per sample; guided: both branches and their combination.
//
// The reduction needs the whole row before the first element can be written, so the data is read twice.
#pragma once

namespace vaccel {

// x, residual: [B, ...]; magnitude: [B] in fp32; returns [B, ...].
static Tensor direction_magnitude(Tensor x, Tensor residual, Tensor magnitude) {
  return reduced_then_mapped(DirectionMagnitude{}, magnitude, x, residual);
}

// cond, uncond: the branches' residuals, [B, ...] like x; returns u + w (c - u) of the two, [B, ...].
static Tensor direction_magnitude_guided(Tensor x, Tensor cond, Tensor uncond, Tensor magnitude, double scale) {
  return reduced_then_mapped(DirectionMagnitudeGuided{static_cast<float>(scale)}, magnitude, x, cond, uncond);
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) {
  m.impl("direction_magnitude", TORCH_BOX(&direction_magnitude));
  m.impl("direction_magnitude_guided", TORCH_BOX(&direction_magnitude_guided));
}

}  // namespace vaccel
