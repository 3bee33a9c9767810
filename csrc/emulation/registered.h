// Included before every CUDA source: torch's headers as they are, then the sources' kernels are registered for the CPU,
// in place of its own, and launched here.
#pragma once

#include <cuda_runtime.h>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) static_cast<void>(call)
#undef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK(call) static_cast<void>(call)

namespace torch::stable::accelerator {
struct NoDevice {
  explicit NoDevice(int32_t) {}
};
}  // namespace torch::stable::accelerator

inline int no_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

#define DeviceGuard NoDevice
#define aoti_torch_get_current_cuda_stream no_stream
#define CUDA CPU
