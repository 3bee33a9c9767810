// relative_l1(a, b) = sum |a - b| / sum |b|, per sample.
#include "launch.h"

using namespace vaccel;

// a, b: [B, ...]; returns [B] in fp32.
Tensor relative_l1_cuda(Tensor a, Tensor b) { return reduced(RelativeL1{}, nullptr, a, b); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, CUDA, m) { m.impl("relative_l1", TORCH_BOX(&relative_l1_cuda)); }
