// direction_magnitude(x, r, m) = m (x + r) / norm(x + r), per sample, fp32 on a CPU.
//
// Two passes over the data.  The first adds up squares in chunks of a fixed length, whatever the number of threads, so
// the result never depends on how the work was split; the second writes the scaled sum.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define VACCEL_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define VACCEL_CLONES
#endif

namespace {

constexpr int64_t kChunk = 4096;      // elements a partial sum covers
constexpr int64_t kGrain = 8;         // chunks worth waking a thread for
constexpr int kLanes = 16;            // independent accumulators, so the loop vectorises

VACCEL_CLONES
double sum_of_squares(const float* x, const float* r, int64_t n) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float d = x[i + l] + r[i + l];
      lanes[l] += d * d;
    }
  }
  double total = 0;
  for (float lane : lanes) total += lane;
  for (; i < n; ++i) {
    const float d = x[i] + r[i];
    total += d * d;
  }
  return total;
}

VACCEL_CLONES
void scaled_sum(const float* x, const float* r, float scale, float* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = (x[i] + r[i]) * scale;
}

}  // namespace

// x, residual: [B, n] contiguous; magnitude: [B]; returns [B, n].
torch::stable::Tensor direction_magnitude_cpu(
    torch::stable::Tensor x, torch::stable::Tensor residual, torch::stable::Tensor magnitude) {
  auto out = torch::stable::empty_like(x);
  const int64_t batch = x.size(0);
  const int64_t n = batch == 0 ? 0 : x.numel() / batch;
  if (n == 0) return out;
  const auto* px = static_cast<const float*>(x.data_ptr());
  const auto* pr = static_cast<const float*>(residual.data_ptr());
  const auto* pm = static_cast<const float*>(magnitude.data_ptr());
  auto* po = static_cast<float*>(out.data_ptr());

  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> partial(batch * chunks);
  torch::stable::parallel_for(0, batch * chunks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t start = (c % chunks) * kChunk;
      const int64_t at = (c / chunks) * n + start;
      partial[c] = sum_of_squares(px + at, pr + at, std::min(kChunk, n - start));
    }
  });
  std::vector<float> scale(batch);
  for (int64_t b = 0; b < batch; ++b) {
    double total = 0;
    for (int64_t c = 0; c < chunks; ++c) total += partial[b * chunks + c];
    scale[b] = static_cast<float>(pm[b] / std::sqrt(total));
  }
  torch::stable::parallel_for(0, batch * chunks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t start = (c % chunks) * kChunk;
      const int64_t at = (c / chunks) * n + start;
      scaled_sum(px + at, pr + at, scale[c / chunks], po + at, std::min(kChunk, n - start));
    }
  });
  return out;
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) {
  m.impl("direction_magnitude", TORCH_BOX(&direction_magnitude_cpu));
}
