// norm(x) = sqrt(sum x^2), per sample.
#include "launch.h"

using namespace vaccel;

// x: [B, ...]; returns [B] in fp32.
Tensor norm_cuda(Tensor x) { return reduced(Norm{}, nullptr, x); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, CUDA, m) { m.impl("norm", TORCH_BOX(&norm_cuda)); }
