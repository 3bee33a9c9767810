// cosine(a, b) = <a, b> / (norm(a) norm(b)), per sample.
#include <torch/csrc/stable/library.h>

#include "vector.h"

using namespace vaccel;

// a, b: [B, ...]; returns [B] in fp32.
Tensor cosine_cpu(Tensor a, Tensor b) { return reduced(Cosine{}, nullptr, a, b); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("cosine", TORCH_BOX(&cosine_cpu)); }
