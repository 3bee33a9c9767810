// direction_magnitude(x, r, m) = m (x + r) / norm(x + r), per sample.
//
// The reduction needs the whole row before the first element can be written, so the data is read twice.
#include <cmath>

#include <torch/csrc/stable/library.h>

#include "vector.h"

using namespace vaccel;

// x, residual: [B, ...]; magnitude: [B] in fp32; returns [B, ...].
Tensor direction_magnitude_cpu(Tensor x, Tensor residual, Tensor magnitude) {
  x = dense(x), residual = dense(residual), magnitude = dense(magnitude);
  Tensor out = torch::stable::empty_like(x);
  const int64_t batch = x.size(0), n = row_length(x);
  for_dtype(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *px = read<T>(x), *pr = read<T>(residual);
    const auto sums = sums_of_rows<1>(batch, n, [&](int64_t row, int64_t start, int64_t length, double* total) {
      const T *qx = px + row * n + start, *qr = pr + row * n + start;
      vectorised([&]() VACCEL_INLINED {
        add_up<1>(length, total, [&](int64_t i, auto span, Floats* sum) VACCEL_INLINED {
          const Floats d = span.load(qx + i) + span.load(qr + i);
          sum[0] += d * d;
        });
      });
    });
    const float* pm = read<float>(magnitude);
    T* po = write<T>(out);
    for_chunks(batch, n, [&](int64_t row, int64_t start, int64_t length) {
      const auto scale = static_cast<float>(pm[row] / std::sqrt(sums[row]));
      const T *qx = px + row * n + start, *qr = pr + row * n + start;
      T* qo = po + row * n + start;
      vectorised([&]() VACCEL_INLINED {
        sweep(length, [&](int64_t i, auto span) VACCEL_INLINED {
          span.store((span.load(qx + i) + span.load(qr + i)) * scale, qo + i);
        });
      });
    });
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("direction_magnitude", TORCH_BOX(&direction_magnitude_cpu)); }
