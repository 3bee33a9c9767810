// Combinations of tensors whose coefficients go by sample and channel, on rows.cuh.
#pragma once

#include "channels.h"
#include "rows.cuh"

namespace vaccel {

// The entries of a chunk's elements.  Where the chunk starts is divided in 64 bits, what follows it in 32.
class Entries {
 public:
  __device__ __forceinline__ Entries(const Channels& layout, int64_t start)
      : set_(start / layout.set),
        channel_(start / layout.inner % layout.channels),
        in_set_(layout.channels),
        elements_(layout.set - start % layout.set, layout.set),
        rows_(layout.inner - start % layout.inner, layout.inner),
        channels_(layout.channels - channel_, layout.channels) {}

  // That of the chunk's element i.
  __device__ __forceinline__ int64_t operator()(int i) const {
    const int row = rows_.index(i);
    // Whole rounds of the channels fill a set, so they need not be counted from its start.
    const int64_t channel = row < channels_.first ? channel_ + row : (row - channels_.first) % channels_.size;
    return (set_ + elements_.index(i)) * in_set_ + channel;
  }

 private:
  // Pieces of one size, of which `first` is left of the one that the chunk starts in.
  struct Pieces {
    int first, size;
    __device__ __forceinline__ Pieces(int64_t first, int64_t size) : first(narrowed(first)), size(narrowed(size)) {}
    __device__ __forceinline__ int index(int i) const { return i < first ? 0 : 1 + (i - first) / size; }
    // No chunk is as long as what 32 bits cannot hold.
    static __device__ __forceinline__ int narrowed(int64_t length) {
      return static_cast<int>(length < INT32_MAX ? length : INT32_MAX);
    }
  };
  int64_t set_, channel_, in_set_;
  Pieces elements_, rows_, channels_;
};

// out = formula(sums) of n elements; one block a chunk.  The W elements of a pack share their coefficients, or, if
// kAlong, have W that lie side by side.
template <int W, bool kAlong, class T, class Formula>
__global__ void __launch_bounds__(kThreads) combine_kernel(int64_t n, Channels layout, Formula formula,
                                                           const __grid_constant__ Combined<T> in, T* out) {
  constexpr int kBranches = Formula::kBranches, kPacks = kLoads / kBranches, kFactors = kAlong ? W : 1;
  constexpr int kStep = kThreads * W;
  const int64_t start = blockIdx.x * kChunk<T>, table = layout.sets * layout.channels;
  const int length = static_cast<int>(n - start < kChunk<T> ? n - start : kChunk<T>);
  const Entries entries(layout, start);
  for (int base = threadIdx.x * W; base < length; base += kPacks * kStep) {
    float sums[kPacks][W][kBranches];
    const float* entry[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (base + p * kStep < length) entry[p] = in.coefficients + entries(base + p * kStep);
#pragma unroll
      for (int e = 0; e < W * kBranches; ++e) sums[p][e / kBranches][e % kBranches] = nothing<float>();
    }
    for (int k = 0; k < in.count; ++k) {
      Pack<T, W> packs[kPacks][kBranches];
      Pack<float, kFactors> factors[kPacks];
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int i = base + p * kStep;
        if (i >= length) continue;
        factors[p] = *reinterpret_cast<const Pack<float, kFactors>*>(entry[p] + k * table);
#pragma unroll
        for (int b = 0; b < kBranches; ++b)
          packs[p][b] = get<T, W>(in.tensors[b * in.count + k] + start + i);
      }
#pragma unroll
      for (int p = 0; p < kPacks; ++p)
#pragma unroll
        for (int e = 0; e < W; ++e)
#pragma unroll
          for (int b = 0; b < kBranches; ++b)
            sums[p][e][b] = added(sums[p][e][b], factors[p].value[kAlong ? e : 0], widen(packs[p][b].value[e]));
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = base + p * kStep;
      if (i >= length) continue;
      Pack<T, W> result;
#pragma unroll
      for (int e = 0; e < W; ++e) result.value[e] = narrow<T>(formula(sums[p][e]));
      put(out + start + i, result);
    }
  }
}

}  // namespace vaccel
