// norm(x) = sqrt(sum x^2), per sample.
#include <cmath>

#include <torch/csrc/stable/library.h>

#include "vector.h"

using namespace vaccel;

// x: [B, ...]; returns [B] in fp32.
Tensor norm_cpu(Tensor x) {
  x = dense(x);
  Tensor out = empty_rows(x);
  const int64_t batch = x.size(0), n = row_length(x);
  for_dtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T* px = read<T>(x);
    const auto sums = sums_of_rows<1>(batch, n, [&](int64_t row, int64_t start, int64_t length, double* total) {
      const T* at = px + row * n + start;
      vectorised([&]() VACCEL_INLINED {
        add_up<1>(length, total, [&](int64_t i, auto span, Floats* sum) VACCEL_INLINED {
          const Floats v = span.load(at + i);
          sum[0] += v * v;
        });
      });
    });
    float* po = write<float>(out);
    for (int64_t b = 0; b < batch; ++b) po[b] = static_cast<float>(std::sqrt(sums[b]));
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("norm", TORCH_BOX(&norm_cpu)); }
