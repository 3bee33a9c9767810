// relative_l1(a, b) = sum |a - b| / sum |b|, per sample.
#include <torch/csrc/stable/library.h>

#include "vector.h"

using namespace vaccel;

namespace {

VACCEL_INLINE Floats magnitude(const Floats& v) { return bits_as<Floats>(bits_as<Words>(v) & 0x7fffffffu); }

}  // namespace

// a, b: [B, ...]; returns [B] in fp32.
Tensor relative_l1_cpu(Tensor a, Tensor b) {
  a = dense(a), b = dense(b);
  Tensor out = empty_rows(a);
  const int64_t batch = a.size(0), n = row_length(a);
  for_dtype(a.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const T *pa = read<T>(a), *pb = read<T>(b);
    const auto sums = sums_of_rows<2>(batch, n, [&](int64_t row, int64_t start, int64_t length, double* total) {
      const T *qa = pa + row * n + start, *qb = pb + row * n + start;
      vectorised([&]() VACCEL_INLINED {
        add_up<2>(length, total, [&](int64_t i, auto span, Floats* sum) VACCEL_INLINED {
          const Floats vb = span.load(qb + i);
          sum[0] += magnitude(span.load(qa + i) - vb);
          sum[1] += magnitude(vb);
        });
      });
    });
    float* po = write<float>(out);
    for (int64_t r = 0; r < batch; ++r) po[r] = static_cast<float>(sums[2 * r] / sums[2 * r + 1]);
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("relative_l1", TORCH_BOX(&relative_l1_cpu)); }
