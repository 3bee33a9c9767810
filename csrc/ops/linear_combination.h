// linear_combination(x, a) = sum over k of a[k] x[k], a by sample and channel; guided: of both branches, and theirs.
#pragma once

#include <utility>
#include <vector>

namespace vaccel {

// x: contiguous; coefficients: [n, B or 1, C or 1].  Those of no channel make a sample, or all of them, one long row.
static Channels channels_of(const Tensor& x, const Tensor& coefficients, int64_t channel_dim) {
  const int64_t sets = coefficients.size(1), channels = coefficients.size(2), set = x.numel() / sets;
  return {sets, set, channels, channels == 1 ? set : x.stride(channel_dim)};
}

// tensors: of one branch after the other.
template <class Formula>
static void combine(std::vector<Tensor> tensors, const Tensor& coefficients, const Formula& formula, Tensor& out,
                    int64_t channel_dim) {
  const size_t count = tensors.size() / Formula::kBranches;
  if (count < 1 || count > kMostTensors || static_cast<int64_t>(count) != coefficients.size(0))
    throw std::invalid_argument("vaccel: expected 1 to 6 tensors and coefficients of each");
  if (out.numel() == 0) return;
  const Tensor table = dense(coefficients);
  for (Tensor& t : tensors) t = dense(t);
  for_dtype(out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    Combined<T> in{static_cast<int>(count), read<float>(table), {}};
    for (size_t k = 0; k < tensors.size(); ++k) in.tensors[k] = read<T>(tensors[k]);
    combined(out, channels_of(out, table, channel_dim), formula, in);
  });
}

// tensors: 1 to 6, [B, ...], one dtype and shape; coefficients: in fp32; out: contiguous, like the tensors.
static void linear_combination(std::vector<Tensor> tensors, Tensor coefficients, Tensor out, int64_t channel_dim) {
  combine(std::move(tensors), coefficients, Combination{}, out, channel_dim);
}

// cond, uncond: as many of each branch, with the same coefficients; out = u + w (c - u) of their combinations.
static void linear_combination_guided(std::vector<Tensor> cond, std::vector<Tensor> uncond, Tensor coefficients,
                                      double scale, Tensor out, int64_t channel_dim) {
  if (cond.size() != uncond.size()) throw std::invalid_argument("vaccel: the branches differ in number of tensors");
  cond.insert(cond.end(), uncond.begin(), uncond.end());
  combine(std::move(cond), coefficients, GuidedCombination{static_cast<float>(scale)}, out, channel_dim);
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, VACCEL_DEVICE, m) {
  m.impl("linear_combination", TORCH_BOX(&linear_combination));
  m.impl("linear_combination_guided", TORCH_BOX(&linear_combination_guided));
}

}  // namespace vaccel
