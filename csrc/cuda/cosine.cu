// cosine(a, b) = <a, b> / (norm(a) norm(b)), per sample.
#include "launch.h"

using namespace vaccel;

// a, b: [B, ...]; returns [B] in fp32.
Tensor cosine_cuda(Tensor a, Tensor b) { return reduced(Cosine{}, nullptr, a, b); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, CUDA, m) { m.impl("cosine", TORCH_BOX(&cosine_cuda)); }
