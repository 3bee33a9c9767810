// norm(x) = sqrt(sum x^2), per sample.
#pragma once

namespace vaccel {

// x: [B, ...]; returns [B] in fp32.
static Tensor norm(Tensor x) { return reduced(Norm{}, nullptr, x); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) { m.impl("norm", TORCH_BOX(&norm)); }

}  // namespace vaccel
