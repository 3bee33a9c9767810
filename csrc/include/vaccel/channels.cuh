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

  // Elements from the chunk's element i to the end of its row.
  __device__ __forceinline__ int left_in_row(int i) const { return rows_.left(i); }

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
    __device__ __forceinline__ int left(int i) const { return i < first ? first - i : size - (i - first) % size; }
    // No chunk is as long as what 32 bits cannot hold.
    static __device__ __forceinline__ int narrowed(int64_t length) {
      return static_cast<int>(length < INT32_MAX ? length : INT32_MAX);
    }
  };
  int64_t set_, channel_, in_set_;
  Pieces elements_, rows_, channels_;
};

// Whose coefficients the W elements of a pack take: all the same, W that lie side by side, or those of two rows, the
// pack's first elements of the one and its last of the other.
enum class Factors { kShared, kAlong, kSplit };

// A pack's coefficients of every tensor.
template <int W, Factors kFactors>
class PackFactors {
 public:
  __device__ __forceinline__ void find(const Entries& entries, const float* table, int i) {
    entry_ = table + entries(i);
    if constexpr (kFactors == Factors::kSplit) {
      left_ = entries.left_in_row(i);
      further_ = left_ < W ? static_cast<int>(table + entries(i + W - 1) - entry_) : 0;
    }
  }
  __device__ __forceinline__ void load(int64_t of_tensor) {
    if constexpr (kFactors == Factors::kSplit) {
      loaded_.value[0] = entry_[of_tensor];
      loaded_.value[1] = entry_[of_tensor + further_];
    } else {
      loaded_ = *reinterpret_cast<const Pack<float, kLoaded>*>(entry_ + of_tensor);
    }
  }
  __device__ __forceinline__ float operator[](int e) const {
    if constexpr (kFactors == Factors::kSplit) return e < left_ ? loaded_.value[0] : loaded_.value[1];
    return loaded_.value[kFactors == Factors::kAlong ? e : 0];
  }

 private:
  static constexpr int kLoaded = kFactors == Factors::kAlong ? W : kFactors == Factors::kSplit ? 2 : 1;
  const float* entry_;
  int left_, further_;
  Pack<float, kLoaded> loaded_;
};

// Elements that no pack holds, one a thread.
template <class T, class Formula>
__device__ __forceinline__ void combine_one(int i, int64_t start, int64_t table, const Entries& entries,
                                            const Formula& formula, const Combined<T>& in, T* out) {
  float sums[Formula::kBranches];
  const float* entry = in.coefficients + entries(i);
#pragma unroll
  for (int b = 0; b < Formula::kBranches; ++b) {
    sums[b] = nothing<float>();
    for (int k = 0; k < in.count; ++k)
      sums[b] = added(sums[b], entry[k * table], widen(in.tensors[b * in.count + k][start + i]));
  }
  out[start + i] = narrow<T>(formula(sums));
}

// out = formula(sums) of n elements; one block a chunk.
template <int W, Factors kFactors, class T, class Formula>
__global__ void __launch_bounds__(kThreads, kBlocks)
    combine_kernel(int64_t n, Channels layout, Formula formula, const __grid_constant__ Combined<T> in, T* out) {
  // With two coefficients a pack half as many packs, or they do not fit the registers.
  constexpr int kBranches = Formula::kBranches, kPacks = kLoads / kBranches / (kFactors == Factors::kSplit ? 2 : 1);
  constexpr int kStep = kThreads * W;
  const int64_t start = blockIdx.x * kChunk<T>, table = layout.sets * layout.channels;
  const int length = static_cast<int>(n - start < kChunk<T> ? n - start : kChunk<T>);
  const int head = head_of<W>(length, out + start), body = (length - head) / W * W, end = head + body;
  const Entries entries(layout, start);
  for (int base = head + threadIdx.x * W; base < end; base += kPacks * kStep) {
    float sums[kPacks][W][kBranches];
    PackFactors<W, kFactors> factors[kPacks];
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (base + p * kStep < end) factors[p].find(entries, in.coefficients, base + p * kStep);
#pragma unroll
      for (int e = 0; e < W * kBranches; ++e) sums[p][e / kBranches][e % kBranches] = nothing<float>();
    }
    for (int k = 0; k < in.count; ++k) {
      Pack<T, W> packs[kPacks][kBranches];
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int i = base + p * kStep;
        if (i >= end) continue;
        factors[p].load(k * table);
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
            sums[p][e][b] = added(sums[p][e][b], factors[p][e], widen(packs[p][b].value[e]));
    }
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int i = base + p * kStep;
      if (i >= end) continue;
      Pack<T, W> result;
#pragma unroll
      for (int e = 0; e < W; ++e) result.value[e] = narrow<T>(formula(sums[p][e]));
      put(out + start + i, result);
    }
  }
  const int thread = static_cast<int>(threadIdx.x);
  if (W > 1 && thread < length - body)
    combine_one(thread < head ? thread : thread + body, start, table, entries, formula, in, out);
}

}  // namespace vaccel
