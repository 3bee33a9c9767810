// block_store(x): a copy into a preallocated buffer.
#pragma once

namespace vaccel {

// x: any strides; out: contiguous, of x's shape and dtype.
static void block_store(Tensor x, Tensor out) { mapped(out, Copy{}, x); }

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) { m.impl("block_store", TORCH_BOX(&block_store)); }

}  // namespace vaccel
