// cosine(a, b) = <a, b> / (norm(a) norm(b)), per sample.
#include <cmath>

#include <torch/csrc/stable/library.h>

#include "vector.h"

using namespace vaccel;

// a, b: [B, ...]; returns [B] in fp32.
Tensor cosine_cpu(Tensor a, Tensor b) {
  a = dense(a), b = dense(b);
  Tensor out = empty_rows(a);
  const int64_t batch = a.size(0), n = row_length(a);
  for_dtype(a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *pa = read<T>(a), *pb = read<T>(b);
    const auto sums = sums_of_rows<3>(batch, n, [&](int64_t row, int64_t start, int64_t length, double* total) {
      const T *qa = pa + row * n + start, *qb = pb + row * n + start;
      vectorised([&]() VACCEL_INLINED {
        add_up<3>(length, total, [&](int64_t i, auto span, Floats* sum) VACCEL_INLINED {
          const Floats va = span.load(qa + i), vb = span.load(qb + i);
          sum[0] += va * vb;
          sum[1] += va * va;
          sum[2] += vb * vb;
        });
      });
    });
    float* po = write<float>(out);
    for (int64_t r = 0; r < batch; ++r) {
      const double* s = &sums[3 * r];
      po[r] = static_cast<float>(s[0] / (std::sqrt(s[1]) * std::sqrt(s[2])));
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("cosine", TORCH_BOX(&cosine_cpu)); }
