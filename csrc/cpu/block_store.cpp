// block_store(x): a copy into a preallocated buffer.
#include <torch/csrc/stable/library.h>

#include "vector.h"

using namespace vaccel;

// x: any strides; out: contiguous, of x's shape and dtype.
void block_store_cpu(Tensor x, Tensor out) { mapped(out, Copy{}, x); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("block_store", TORCH_BOX(&block_store_cpu)); }
