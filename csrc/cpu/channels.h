// Combinations of tensors whose coefficients go by sample and channel, on vector.h.
#pragma once

#include <vaccel/channels.h>

#include "vector.h"

namespace vaccel {

constexpr int64_t kShortRow = 64;   // shorter rows of one channel take their coefficients from memory, as vectors
constexpr int64_t kPattern = 1024;  // elements such coefficients are repeated for, so that few vectors are cut

// Tables of coefficients as their elements meet them: rows of one element, and the channels repeated, as often as a set
// has room for, so that they stand for more of them.
inline std::vector<float> laid_out(Channels& layout, int tables, const float* coefficients) {
  const int64_t period = layout.channels * layout.inner;
  const int64_t repeats = std::min((kPattern + period - 1) / period, layout.set / period);
  std::vector<float> pattern;
  pattern.reserve(tables * layout.sets * repeats * period);
  for (int64_t set = 0; set < tables * layout.sets; ++set)
    for (int64_t repeat = 0; repeat < repeats; ++repeat)
      for (int64_t channel = 0; channel < layout.channels; ++channel)
        pattern.insert(pattern.end(), layout.inner, coefficients[set * layout.channels + channel]);
  layout.channels = repeats * period;
  layout.inner = 1;
  return pattern;
}

// Elements begin to end - 1, a stretch at a time: what they have of one row, or, if kAlong, of one round of channels.
template <bool kAlong, class T, class Formula>
VACCEL_INLINE void combine_stretches(int64_t begin, int64_t end, const Channels& layout, const Formula& formula,
                                     const Combined<T>& in, T* out) {
  constexpr int kBranches = Formula::kBranches;
  const int64_t table = layout.sets * layout.channels, longest = kAlong ? layout.channels : layout.inner;
  for (int64_t at = begin, next; at < end; at = next) {
    const int64_t within = at % layout.set, passed = within % longest;
    next = std::min({end, at + longest - passed, at + layout.set - within});
    const int64_t channel = kAlong ? passed : within / layout.inner % layout.channels;
    const float* entry = in.coefficients + at / layout.set * layout.channels + channel;
    sweep(next - at, [&](int64_t i, auto span) VACCEL_INLINED {
      Floats sums[kBranches];
      for (int b = 0; b < kBranches; ++b) sums[b] = nothing<Floats>();
      for (int k = 0; k < in.count; ++k) {
        const float* const factor = entry + k * table;
        for (int b = 0; b < kBranches; ++b) {
          const Floats value = span.load(in.tensors[b * in.count + k] + at + i);
          if constexpr (kAlong)
            sums[b] = added(sums[b], span.load(factor + i), value);
          else
            sums[b] = added(sums[b], *factor, value);
        }
      }
      span.store(formula(sums), out + at + i);
    });
  }
}

// out = formula(sums) for every element; all of out's dtype and shape, out contiguous.
template <class T, class Formula>
inline void combined(Tensor& out, Channels layout, const Formula& formula, Combined<T> in) {
  const bool along = layout.inner < kShortRow;
  std::vector<float> pattern;
  if (along && (layout.inner > 1 || layout.channels < kPattern)) {
    pattern = laid_out(layout, in.count, in.coefficients);
    in.coefficients = pattern.data();
  }
  for_chunks(1, out.numel(), [&](int64_t, int64_t start, int64_t length) {
    vectorised([&]() VACCEL_INLINED {
      if (along)
        combine_stretches<true>(start, start + length, layout, formula, in, write<T>(out));
      else
        combine_stretches<false>(start, start + length, layout, formula, in, write<T>(out));
    });
  });
}

}  // namespace vaccel
