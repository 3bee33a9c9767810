// Launches combinations of tensors whose coefficients go by sample and channel.
#pragma once

#include <vaccel/channels.cuh>

#include "launch.h"

namespace vaccel {

// out = formula(sums) for every element; all of out's dtype and shape, out contiguous.
template <class T, class Formula>
inline void combined(Tensor& out, const Channels& layout, const Formula& formula, const Combined<T>& in) {
  constexpr int kWide = kBytes / sizeof(T);
  const int64_t n = out.numel();
  const uintptr_t from = past_boundary(write<T>(out));
  bool wide = from % sizeof(T) == 0;
  for (int k = 0; k < in.count * Formula::kBranches; ++k) wide = wide && past_boundary(in.tensors[k]) == from;
  const auto run = [&](auto width, auto factors) {
    const auto kernel = combine_kernel<decltype(width)::value, decltype(factors)::value, T, Formula>;
    const Launcher launch(out);
    launch(kernel, chunk_count(1, n, kChunk<T>), n, layout, formula, in, write<T>(out));
  };
  const auto wide_pack = std::integral_constant<int, kWide>{};
  const auto shared = std::integral_constant<Factors, Factors::kShared>{};
  const bool side_by_side = layout.inner == 1 && layout.channels % kWide == 0 &&
                            reinterpret_cast<uintptr_t>(in.coefficients) % (kWide * sizeof(float)) == 0;
  if (wide && from == 0 && layout.inner % kWide == 0)
    run(wide_pack, shared);
  else if (wide && from == 0 && side_by_side)
    run(wide_pack, std::integral_constant<Factors, Factors::kAlong>{});
  else if (wide && layout.inner >= kWide)
    run(wide_pack, std::integral_constant<Factors, Factors::kSplit>{});
  else
    run(std::integral_constant<int, 1>{}, shared);
}

}  // namespace vaccel
