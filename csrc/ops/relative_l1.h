// relative_l1(a, b) = sum |a - b| / sum |b|, per sample.
#pragma once

namespace vaccel {

// a, b: [B, ...]; returns [B] in fp32.
static Tensor relative_l1(Tensor a, Tensor b) { return reduced(RelativeL1{}, nullptr, a, b); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) { m.impl("relative_l1", TORCH_BOX(&relative_l1)); }

}  // namespace vaccel
