// cfg_combine(c, u, w) = u + w (c - u).
#include <torch/csrc/stable/library.h>

#include "vector.h"

using namespace vaccel;

// cond, uncond: [B, ...]; out: the same, contiguous.
void cfg_combine_cpu(Tensor cond, Tensor uncond, double scale, Tensor out) {
  cond = dense(cond), uncond = dense(uncond);
  const auto w = static_cast<float>(scale);
  for_dtype(cond.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *pc = read<T>(cond), *pu = read<T>(uncond);
    T* po = write<T>(out);
    for_chunks(1, cond.numel(), [&](int64_t, int64_t start, int64_t length) {
      vectorised([&]() VACCEL_INLINED {
        sweep(length, [&](int64_t i, auto span) VACCEL_INLINED {
          const Floats u = span.load(pu + start + i);
          span.store(u + w * (span.load(pc + start + i) - u), po + start + i);
        });
      });
    });
  });
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("cfg_combine", TORCH_BOX(&cfg_combine_cpu)); }
