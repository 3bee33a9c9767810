// From torch's tensors to the kernels of rows.cuh: storage formats, the current stream, grids.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <type_traits>
#include <utility>

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <vaccel/rows.cuh>

#include "../tensors.h"

#define VACCEL_DEVICE CUDA  // what ../ops/*.h registers their functions for

#ifndef STABLE_TORCH_ERROR_CODE_CHECK  // torch 2.11 has it under another name
#define STABLE_TORCH_ERROR_CODE_CHECK(call) TORCH_ERROR_CODE_CHECK(call)
#endif

namespace vaccel {

inline Tensor new_floats(const Tensor& like, int64_t count) {
  return torch::stable::new_empty(like, {count}, ScalarType::Float);
}

template <class Run>
inline void for_dtype(ScalarType type, const Run& run) {
  for_format<__nv_bfloat16, __half>(type, run);
}

// Bytes past the last boundary that a wide load can start from.
inline uintptr_t past_boundary(const void* p) { return reinterpret_cast<uintptr_t>(p) % kBytes; }

// Calls run(width): as many elements a load as sixteen bytes hold, or one where the tensors' boundaries do not coincide.
// A null pointer stands for nothing.
template <class T, class Run, class First, class... Pointers>
inline void for_width(const Run& run, First first, Pointers... pointers) {
  const void* all[] = {pointers..., first};
  const uintptr_t from = past_boundary(all[0]);
  bool together = from % sizeof(T) == 0;
  for (const void* p : all) together = together && (p == nullptr || past_boundary(p) == from);
  if (together)
    run(std::integral_constant<int, kBytes / sizeof(T)>{});
  else
    run(std::integral_constant<int, 1>{});
}

// Launches on the stream that is current on `on`'s device.
class Launcher {
 public:
  explicit Launcher(const Tensor& on) : guard_(on.get_device_index()), device_(on.get_device_index()) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), int64_t blocks, Arguments... arguments) const {
    launch(kernel, blocks, false, arguments...);
  }

  // With as many blocks as fit on the device at a time, `blocks` at the most, so that they can wait for one another.
  template <class... Parameters, class... Arguments>
  void together(void (*kernel)(Parameters...), int64_t blocks, Arguments... arguments) const {
    // Asked for once: the answer takes longer than a launch.
    static thread_local std::map<std::pair<const void*, int>, int64_t> known;
    int64_t& fit = known[{reinterpret_cast<const void*>(kernel), device_}];
    if (fit == 0) {
      int per_processor = 0, processors = 0;
      STD_CUDA_CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_processor, kernel, kThreads, 0));
      STD_CUDA_CHECK(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device_));
      fit = int64_t{per_processor} * processors;
    }
    launch(kernel, blocks < 1 ? 1 : blocks < fit ? blocks : fit, true, arguments...);
  }

 private:
  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), int64_t blocks, bool cooperative, Arguments... arguments) const {
    cudaLaunchAttribute attribute{};
    attribute.id = cudaLaunchAttributeCooperative;
    attribute.val.cooperative = cooperative;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(kThreads);
    config.stream = stream_;
    config.attrs = &attribute;
    config.numAttrs = cooperative;
    STD_CUDA_CHECK(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  torch::stable::accelerator::DeviceGuard guard_;
  int32_t device_;
  cudaStream_t stream_ = nullptr;
};

inline int64_t chunk_count(int64_t batch, int64_t n, int64_t chunk) { return batch * ((n + chunk - 1) / chunk); }

inline const Tensor& first_of(const Tensor& first) { return first; }
template <class... Others>
inline const Tensor& first_of(const Tensor& first, const Others&...) {
  return first;
}

// out = map(inputs...) for every element; all of out's dtype and shape, out contiguous.
template <class Map, class... Inputs>
inline void mapped(Tensor& out, const Map& map, const Inputs&... inputs) {
  const int64_t n = out.numel();
  if (n == 0) return;
  const auto run = [&](const auto&... dense_inputs) {
    for_dtype(out.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const auto at_width = [&](auto width) {
        const auto kernel = map_kernel<decltype(width)::value, T, Map, std::conditional_t<true, T, Inputs>...>;
        const Launcher launch(out);
        launch(kernel, chunk_count(1, n, kChunk<T>), n, map, write<T>(out), read<T>(dense_inputs)...);
      };
      for_width<T>(at_width, write<T>(out), read<T>(dense_inputs)...);
    });
  };
  run(dense(inputs)...);
}

// The reduction's results of each row of the inputs, all [B, ...] of one dtype: [B] in fp32, or [kResults, B].  What it
// stores on the way goes to `stored`, null for a reduction that stores nothing.
template <class Reduction, class Stored, class... Inputs>
inline Tensor reduced(const Reduction& reduction, Stored stored, const Inputs&... inputs) {
  const Tensor& first = first_of(inputs...);
  constexpr int kResults = Reduction::kResults;
  const int64_t batch = first.size(0), n = row_length(first);
  Tensor out = new_results<kResults>(first);
  if (batch == 0) return out;
  const auto run = [&](const auto&... dense_inputs) {
    for_dtype(first.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const int64_t chunks = chunk_count(batch, n, kChunk<T>);
      const Tensor partial = new_floats(first, chunks * Reduction::kSums);
      const auto to = place<T>(stored);
      const auto at_width = [&](auto width) {
        const auto kernel = reduce_kernel<decltype(width)::value, T, Reduction, std::remove_const_t<decltype(to)>,
                                          std::conditional_t<true, T, Inputs>...>;
        Launcher(first).together(kernel, chunks, batch, n, reduction, write<float>(partial), write<float>(out), to,
                                 read<T>(dense_inputs)...);
      };
      for_width<T>(at_width, to, read<T>(dense_inputs)...);
    });
  };
  run(dense(inputs)...);
  return out;
}

// [B, ...]: a reduction of each row of the inputs, then the map that its sums and the row's magnitude make.
template <class Reduction, class... Inputs>
inline Tensor reduced_then_mapped(const Reduction& reduction, const Tensor& magnitude, const Inputs&... inputs) {
  const Tensor& first = first_of(inputs...);
  const int64_t batch = first.size(0), n = row_length(first);
  Tensor out = torch::stable::new_empty(first, first.sizes());
  if (out.numel() == 0) return out;
  const Tensor lengths = dense(magnitude);
  const auto run = [&](const auto&... dense_inputs) {
    for_dtype(first.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const int64_t chunks = chunk_count(batch, n, kChunk<T>);
      const Tensor partial = new_floats(first, chunks * Reduction::kSums);
      const auto at_width = [&](auto width) {
        const auto kernel =
            reduce_then_map_kernel<decltype(width)::value, T, Reduction, std::conditional_t<true, T, Inputs>...>;
        Launcher(first).together(kernel, chunks, batch, n, reduction, write<float>(partial), read<float>(lengths),
                                 write<T>(out), read<T>(dense_inputs)...);
      };
      for_width<T>(at_width, write<T>(out), read<T>(dense_inputs)...);
    });
  };
  run(dense(inputs)...);
  return out;
}

}  // namespace vaccel
