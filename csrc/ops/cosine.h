// cosine(a, b) = <a, b> / (norm(a) norm(b)), per sample.
#pragma once

namespace vaccel {

// a, b: [B, ...]; returns [B] in fp32.
static Tensor cosine(Tensor a, Tensor b) { return reduced(Cosine{}, nullptr, a, b); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) { m.impl("cosine", TORCH_BOX(&cosine)); }

}  // namespace vaccel
