// norm(x) = sqrt(sum x^2), per sample.
#include <torch/csrc/stable/library.h>

#include "vector.h"

using namespace vaccel;

// x: [B, ...]; returns [B] in fp32.
Tensor norm_cpu(Tensor x) { return reduced(Norm{}, nullptr, x); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("norm", TORCH_BOX(&norm_cpu)); }
