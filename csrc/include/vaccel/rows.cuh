// Rows of [batch, n] on a GPU: sixteen bytes a load and a store, fixed chunks, partial sums added in a fixed order.
//
// A row that does not start, or end, at a sixteen-byte boundary has a head, or a tail, of single elements.
//
// A chunk is what a block works on at a time.  Partial sums belong to chunks, whatever the grid, so a result depends
// neither on timing nor on the number of multiprocessors.  A reduction waits for its whole grid (a cooperative launch),
// so that one launch does it all, and a second pass finds in the cache what the first has read.
#pragma once

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "formulas.h"

namespace vaccel {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kLoads = 4;   // packs of one input that a thread has under way at a time
constexpr int kBlocks = 2;  // on a multiprocessor at the least: one block's arithmetic beside another's loads
constexpr int kBytes = 16;

template <class T>
constexpr int64_t kChunk = int64_t{kThreads} * kLoads * (kBytes / sizeof(T));

// W elements that are read or written at once.
template <class T, int W>
struct alignas(sizeof(T) * W) Pack {
  T value[W];
};

// A pack read or written at once.  Copied as it is, the compiler takes a pack apart where its elements are used one by
// one; these it leaves whole.  Past the first-level cache: nothing here is read twice by one multiprocessor.
template <class T, int W>
__device__ __forceinline__ Pack<T, W> get(const T* from) {
  if constexpr (sizeof(Pack<T, W>) == sizeof(uint4)) {
    const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(from));
    Pack<T, W> pack;
    memcpy(&pack, &bits, sizeof(bits));
    return pack;
  } else {
    return *reinterpret_cast<const Pack<T, W>*>(from);
  }
}

template <class T, int W>
__device__ __forceinline__ void put(T* to, const Pack<T, W>& pack) {
  if constexpr (sizeof(pack) == sizeof(uint4)) {
    uint4 bits;
    memcpy(&bits, &pack, sizeof(bits));
    __stcg(reinterpret_cast<uint4*>(to), bits);
  } else {
    *reinterpret_cast<Pack<T, W>*>(to) = pack;
  }
}

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ float widen(__half v) { return __half2float(v); }
__device__ __forceinline__ float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

template <class T>
__device__ __forceinline__ T narrow(float v) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(v);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(v);
  else
    return v;
}

// formula(state..., values of element e of each pack).
template <class T, int W, int N, size_t... I, class Formula, class... State>
__device__ __forceinline__ auto element(std::index_sequence<I...>, const Pack<T, W> (&packs)[N], int e,
                                        const Formula& formula, State... state) {
  return formula(state..., widen(packs[I].value[e])...);
}

// Elements of a chunk before its first sixteen-byte boundary; those that no pack of W holds are read one by one.
template <int W, class T, class... Others>
__device__ __forceinline__ int head_of(int length, const T* first, Others...) {
  if constexpr (W == 1) return 0;
  const int head = static_cast<int>((0 - reinterpret_cast<uintptr_t>(first)) % kBytes / sizeof(T));
  return head < length ? head : length;
}

// Calls use(i, packs) for every W elements of a chunk that are this thread's, and for every one of its head and tail.
// All inputs are as far from a boundary.
template <int W, class T, class Use, class... In>
__device__ __forceinline__ void for_packs(int length, const Use& use, const In*... inputs) {
  // Of three inputs and more half as many each, or their packs alone fill half the registers.
  constexpr int kStep = kThreads * W, kAhead = sizeof...(In) > 2 ? kLoads / 2 : kLoads;
  const int head = head_of<W>(length, inputs...), body = (length - head) / W * W, end = head + body;
  for (int base = head + threadIdx.x * W; base < end; base += kAhead * kStep) {
    Pack<T, W> packs[kAhead][sizeof...(In)];
#pragma unroll
    for (int l = 0; l < kAhead; ++l) {
      const int i = base + l * kStep;
      int input = 0;
      if (i < end) ((packs[l][input++] = get<T, W>(inputs + i)), ...);
    }
#pragma unroll
    for (int l = 0; l < kAhead; ++l) {
      const int i = base + l * kStep;
      if (i < end) use(i, packs[l]);
    }
  }
  if constexpr (W > 1) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread >= length - body) return;
    const int i = thread < head ? thread : thread + body;
    int input = 0;
    Pack<T, 1> single[sizeof...(In)];
    ((single[input++] = get<T, 1>(inputs + i)), ...);
    use(i, single);
  }
}

// A chunk of the output.
template <int W, class T, class Map, class... In>
__device__ __forceinline__ void map_chunk(int length, const Map& map, T* out, const In*... inputs) {
  const auto use = [&](int i, const auto& packs) {
    std::remove_const_t<std::remove_reference_t<decltype(packs[0])>> result;
#pragma unroll
    for (int e = 0; e < int{sizeof(result) / sizeof(T)}; ++e)
      result.value[e] = narrow<T>(element(std::index_sequence_for<In...>{}, packs, e, map));
    put(out + i, result);
  };
  for_packs<W, T>(length, use, inputs...);
}

// A chunk's elements added to this thread's sums; what the reduction stores goes to `stored`.
template <int W, class T, class Reduction, class Stored, class... In>
__device__ __forceinline__ void add_chunk(int length, const Reduction& reduction, float* sums, Stored stored,
                                          const In*... inputs) {
  const auto use = [&](int i, const auto& packs) {
    std::remove_const_t<std::remove_reference_t<decltype(packs[0])>> result;
#pragma unroll
    for (int e = 0; e < int{sizeof(result) / sizeof(T)}; ++e) {
      if constexpr (std::is_null_pointer_v<Stored>)
        element(std::index_sequence_for<In...>{}, packs, e, reduction, sums);
      else
        result.value[e] = narrow<T>(element(std::index_sequence_for<In...>{}, packs, e, reduction, sums));
    }
    if constexpr (!std::is_null_pointer_v<Stored>) put(stored + i, result);
  };
  for_packs<W, T>(length, use, inputs...);
}

// The block's sums, in every thread; always added in the same order.
template <int K, class S>
__device__ __forceinline__ void add_threads(S (&sums)[K]) {
  __shared__ S of_warp[kWarps][K];
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], distance);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][k] = sums[k];
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < K; ++k) {
    sums[k] = of_warp[0][k];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) sums[k] += of_warp[w][k];
  }
  __syncthreads();
}

__device__ __forceinline__ int64_t chunks_of(int64_t n, int64_t chunk) { return (n + chunk - 1) / chunk; }

// First pass of a reduction: partial[chunk][kSums] of every chunk of every row.
template <int W, class T, class Reduction, class Stored, class... In>
__device__ __forceinline__ void add_chunks(int64_t batch, int64_t n, const Reduction& reduction, float* partial,
                                           Stored stored, const In*... inputs) {
  constexpr int K = Reduction::kSums;
  const int64_t chunks = chunks_of(n, kChunk<T>);
  for (int64_t c = blockIdx.x; c < batch * chunks; c += gridDim.x) {
    const int64_t start = (c % chunks) * kChunk<T>, at = (c / chunks) * n + start;
    const int length = static_cast<int>(n - start < kChunk<T> ? n - start : kChunk<T>);
    float sums[K] = {};
    if constexpr (std::is_null_pointer_v<Stored>)
      add_chunk<W, T>(length, reduction, sums, nullptr, (inputs + at)...);
    else
      add_chunk<W, T>(length, reduction, sums, stored + at, (inputs + at)...);
    add_threads(sums);
    if (threadIdx.x == 0)
      for (int k = 0; k < K; ++k) partial[c * K + k] = sums[k];
  }
}

// The sums of one row, in every thread of the block.
template <int K>
__device__ __forceinline__ void add_partials(const float* partial, int64_t chunks, double (&sums)[K]) {
  for (int k = 0; k < K; ++k) sums[k] = 0;
  for (int64_t c = threadIdx.x; c < chunks; c += kThreads)
    for (int k = 0; k < K; ++k) sums[k] += partial[c * K + k];
  add_threads(sums);
}

// -- kernels ---------------------------------------------------------------------------------------------------------

// out = map(inputs...) for n elements; one block a chunk.
template <int W, class T, class Map, class... In>
__global__ void __launch_bounds__(kThreads, kBlocks) map_kernel(int64_t n, Map map, T* out, const In*... inputs) {
  const int64_t at = blockIdx.x * kChunk<T>;
  map_chunk<W>(static_cast<int>(n - at < kChunk<T> ? n - at : kChunk<T>), map, out + at, (inputs + at)...);
}

// results [kResults, batch]; cooperative.
template <int W, class T, class Reduction, class Stored, class... In>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_kernel(int64_t batch, int64_t n, Reduction reduction, float* partial, float* results, Stored stored,
                  const In*... inputs) {
  constexpr int K = Reduction::kSums;
  add_chunks<W, T>(batch, n, reduction, partial, stored, inputs...);
  cooperative_groups::this_grid().sync();
  const int64_t chunks = chunks_of(n, kChunk<T>);
  for (int64_t row = blockIdx.x; row < batch; row += gridDim.x) {
    double sums[K];
    add_partials(partial + row * chunks * K, chunks, sums);
    if (threadIdx.x < Reduction::kResults)
      results[threadIdx.x * batch + row] = static_cast<float>(Reduction::finish(sums, threadIdx.x));
  }
}

// out = the map that a row's sums and its magnitude make, of every element; cooperative.
template <int W, class T, class Reduction, class... In>
__global__ void __launch_bounds__(kThreads, kBlocks)
    reduce_then_map_kernel(int64_t batch, int64_t n, Reduction reduction, float* partial, const float* magnitude,
                           T* out, const In*... inputs) {
  constexpr int K = Reduction::kSums;
  add_chunks<W, T>(batch, n, reduction, partial, nullptr, inputs...);
  cooperative_groups::this_grid().sync();
  const int64_t chunks = chunks_of(n, kChunk<T>);
  typename Reduction::Map map{};
  int64_t mapped = -1;
  // Backwards: what this block has read last is what it finds nearest.
  for (int64_t c = blockIdx.x + (batch * chunks - 1 - blockIdx.x) / gridDim.x * gridDim.x; c >= 0; c -= gridDim.x) {
    const int64_t row = c / chunks, start = (c % chunks) * kChunk<T>, at = row * n + start;
    if (row != mapped) {
      __shared__ typename Reduction::Map of_row;
      double sums[K];
      add_partials(partial + row * chunks * K, chunks, sums);
      if (threadIdx.x == 0) of_row = reduction.map(sums, magnitude[row]);
      __syncthreads();
      map = of_row;  // written again only past the next row's barriers
      mapped = row;
    }
    const int length = static_cast<int>(n - start < kChunk<T> ? n - start : kChunk<T>);
    map_chunk<W>(length, map, out + at, (inputs + at)...);
  }
}

}  // namespace vaccel
