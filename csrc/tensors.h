// What the CPU's and the GPU's glue share: torch's tensors as pointers to rows of one storage format.
#pragma once

#include <cstddef>
#include <stdexcept>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace vaccel {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline int64_t row_length(const Tensor& t) { return t.size(0) == 0 ? 0 : t.numel() / t.size(0); }

template <class T>
inline const T* read(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
inline T* write(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// Where a reduction stores what it stores on the way: a tensor's elements, or nowhere.
template <class T>
inline T* place(const Tensor* stored) {
  return write<T>(*stored);
}
template <class T>
inline std::nullptr_t place(std::nullptr_t) {
  return nullptr;
}

// What a reduction of `first`'s rows returns: [B] in fp32, or [kResults, B].
template <int kResults>
inline Tensor new_results(const Tensor& first) {
  const int64_t batch = first.size(0);
  return kResults == 1 ? torch::stable::new_empty(first, {batch}, ScalarType::Float)
                       : torch::stable::new_empty(first, {kResults, batch}, ScalarType::Float);
}

// Calls run(T{}) with the format that stores `type`, bf16 and fp16 as the caller names them.
template <class Bf16, class Fp16, class Run>
inline void for_format(ScalarType type, const Run& run) {
  switch (type) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::BFloat16:
      return run(Bf16{});
    case ScalarType::Half:
      return run(Fp16{});
    default:
      throw std::invalid_argument("vaccel: expected a tensor of fp32, fp16 or bf16");
  }
}

}  // namespace vaccel
