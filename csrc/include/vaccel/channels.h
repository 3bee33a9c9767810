// Tensors of [B, ..., C, ...] with coefficients by sample and channel: where those of an element are.
#pragma once

#include <cstdint>

namespace vaccel {

constexpr int kMostTensors = 6;  // of one branch

// Tensor k's coefficients are a table of [sets][channels]; element e has its entry [e / set][e / inner % channels].
struct Channels {
  int64_t sets;      // one a sample, or one for all
  int64_t set;       // elements that share one, a multiple of channels * inner
  int64_t channels;  // or one where all are alike
  int64_t inner;     // elements in a row that share a channel
};

// What is combined: `count` tensors of each branch, a branch after the other, and their coefficients.
template <class T>
struct Combined {
  int count;
  const float* coefficients;         // [count][sets][channels]
  const T* tensors[2 * kMostTensors];
};

}  // namespace vaccel
