// What the CPU kernels share: sixteen floats at a time, storage formats, the choice of instructions, fixed chunks.
//
// Arithmetic is fp32 on GCC's vector type, which becomes one AVX-512 register, two of AVX2 or four of SSE2: a kernel's
// inner loop is inlined into one function for each of them (`vectorised`) and the processor chooses at run time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../tensors.h"
// Vectors are only ever passed between functions that are inlined into one another.
#pragma GCC diagnostic ignored "-Wpsabi"
#include <vaccel/formulas.h>

#define VACCEL_DEVICE CPU  // what ../ops/*.h registers their functions for
#define VACCEL_INLINE inline __attribute__((always_inline))
#define VACCEL_INLINED __attribute__((always_inline))  // of a lambda

namespace vaccel {

constexpr int kLanes = 16;
constexpr int kUnroll = 4;             // independent sums, to hide the latency of an addition
constexpr int64_t kDepth = 16;         // additions in a row before a sum is put aside
constexpr int64_t kChunk = 4096;       // elements a partial sum covers, whatever the number of threads
constexpr int64_t kGrain = 8;          // chunks worth waking a thread for

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Shorts __attribute__((vector_size(kLanes * 2)));

// -- storage formats -------------------------------------------------------------------------------------------------

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

template <class To, class From>
VACCEL_INLINE To bits_as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

VACCEL_INLINE Floats widen(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

VACCEL_INLINE Words words(const void* p) {
  Shorts s;
  std::memcpy(&s, p, sizeof s);
  return __builtin_convertvector(s, Words);
}

VACCEL_INLINE Floats widen(const Bf16* p) { return bits_as<Floats>(words(p) << 16); }

// Exponent and mantissa moved into place are the value times 2^-112, subnormal numbers included; what comes out at
// 2^16 or more was infinite or NaN.
VACCEL_INLINE Floats widen(const Fp16* p) {
  const Words w = words(p);
  const Floats value = bits_as<Floats>((w & 0x7fffu) << 13) * 0x1p112f;
  const Words special = bits_as<Words>(value >= 65536.0f) & 0x7f800000u;
  return bits_as<Floats>(bits_as<Words>(value) | special | ((w & 0x8000u) << 16));
}

VACCEL_INLINE void put(const Words& w, void* p) {
  const Shorts s = __builtin_convertvector(w, Shorts);
  std::memcpy(p, &s, sizeof s);
}

VACCEL_INLINE void narrow(const Floats& v, float* p) { std::memcpy(p, &v, sizeof v); }

// To the nearest, ties to even.
VACCEL_INLINE void narrow(const Floats& v, Bf16* p) {
  const Words w = bits_as<Words>(v), rounded = (w + 0x7fffu + ((w >> 16) & 1u)) >> 16;
  put((w & 0x7fffffffu) > 0x7f800000u ? ((w >> 16) | 0x40u) : rounded, p);
}

// To the nearest, ties to even.  Below 2^-14 an addition aligns the mantissa to the smallest subnormal and rounds it.
VACCEL_INLINE void narrow(const Floats& v, Fp16* p) {
  const Words all = bits_as<Words>(v), sign = all & 0x80000000u, w = all ^ sign;
  const Words normal = (w + (0xc8000000u + 0xfffu) + ((w >> 13) & 1u)) >> 13;
  const Words magic = Words{} + 0x3f000000u;
  const Words subnormal = bits_as<Words>(bits_as<Floats>(w) + bits_as<Floats>(magic)) - magic;
  const Words infinite = w > 0x7f800000u ? (Words{} + 0x7e00u) : (Words{} + 0x7c00u);
  const Words finite = w < 0x38800000u ? subnormal : normal;
  put((w >= 0x47800000u ? infinite : finite) | (sign >> 16), p);
}

// A whole vector in memory, or the first `count` of one: the rest loads as zero and is not stored.
struct Whole {
  template <class T>
  VACCEL_INLINE Floats load(const T* p) const {
    return widen(p);
  }
  template <class T>
  VACCEL_INLINE void store(const Floats& v, T* p) const {
    narrow(v, p);
  }
};
struct Part {
  int64_t count;
  template <class T>
  VACCEL_INLINE Floats load(const T* p) const {
    T padded[kLanes] = {};
    std::memcpy(static_cast<void*>(padded), p, count * sizeof(T));
    return widen(padded);
  }
  template <class T>
  VACCEL_INLINE void store(const Floats& v, T* p) const {
    T padded[kLanes];
    narrow(v, padded);
    std::memcpy(static_cast<void*>(p), padded, count * sizeof(T));
  }
};

// -- instructions ----------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
template <class Body>
__attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))) void with_avx512(const Body& body) {
  body();
}
template <class Body>
__attribute__((target("avx2,fma"))) void with_avx2(const Body& body) {
  body();
}
inline int instructions() {
  static const int level = __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                                   __builtin_cpu_supports("avx512vl")
                               ? 2
                           : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 1
                                                                                             : 0;
  return level;
}
// Runs `body`, an inlined lambda, compiled for the best instructions that this processor has.
template <class Body>
inline void vectorised(const Body& body) {
  switch (instructions()) {
    case 2:
      return with_avx512(body);
    case 1:
      return with_avx2(body);
    default:
      return body();
  }
}
#else
template <class Body>
inline void vectorised(const Body& body) {
  body();
}
#endif

// -- loops -----------------------------------------------------------------------------------------------------------

// term(i, span, sums) adds elements i to i + 15 to its K sums; total[k] is the sum over n elements.
//
// A tree of three levels (16 additions in a row, 4 rows side by side, blocks of those; the lanes at last in double):
// rounding errors grow with its depth, not with n.
template <int K, class Term>
VACCEL_INLINE void add_up(int64_t n, double* total, const Term& term) {
  constexpr int64_t kStep = kUnroll * kLanes;
  Floats outer[K] = {};
  for (int64_t i = 0; i < n;) {
    Floats sums[kUnroll][K] = {};
    const int64_t end = std::min(n, i + kDepth * kStep);
    for (; i + kStep <= end; i += kStep) {
#pragma GCC unroll 4
      for (int u = 0; u < kUnroll; ++u) term(i + u * kLanes, Whole{}, sums[u]);
    }
    for (; i + kLanes <= end; i += kLanes) term(i, Whole{}, sums[0]);
    if (i < end) {
      term(i, Part{end - i}, sums[0]);
      i = end;
    }
    for (int k = 0; k < K; ++k) outer[k] += (sums[0][k] + sums[1][k]) + (sums[2][k] + sums[3][k]);
  }
  for (int k = 0; k < K; ++k) {
    total[k] = 0;
    for (int l = 0; l < kLanes; ++l) total[k] += outer[k][l];
  }
}

// element(i, span) handles elements i to i + 15.
template <class Element>
VACCEL_INLINE void sweep(int64_t n, const Element& element) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) element(i, Whole{});
  if (i < n) element(i, Part{n - i});
}

// Calls piece(row, start, length) for every chunk of [batch, n], on as many threads as are worth waking.
template <class Piece>
inline void for_chunks(int64_t batch, int64_t n, const Piece& piece) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  torch::stable::parallel_for(0, batch * chunks, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const int64_t start = (c % chunks) * kChunk;
      piece(c / chunks, start, std::min(kChunk, n - start));
    }
  });
}

// The sums of each of [batch, n]'s rows, row after row, that the term adds up; what it returns, if anything, goes to
// out.  Chunks are added in their order, so the result does not depend on the number of threads.
template <class Term, class Out, class... T>
inline std::vector<double> sums_of_rows(int64_t batch, int64_t n, const Term& term, Out out, const T*... inputs) {
  constexpr int K = Term::kSums;
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  std::vector<double> sums(batch * K), partial(batch * chunks * K);
  for_chunks(batch, n, [&](int64_t row, int64_t start, int64_t length) {
    const int64_t at = row * n + start;
    double* total = &partial[(row * chunks + start / kChunk) * K];
    vectorised([&]() VACCEL_INLINED {
      add_up<K>(length, total, [&](int64_t i, auto span, Floats* into) VACCEL_INLINED {
        if constexpr (std::is_null_pointer_v<Out>)
          term(into, span.load(inputs + at + i)...);
        else
          span.store(term(into, span.load(inputs + at + i)...), out + at + i);
      });
    });
  });
  for (int64_t row = 0; row < batch; ++row)
    for (int64_t c = 0; c < chunks; ++c)
      for (int k = 0; k < K; ++k) sums[row * K + k] += partial[(row * chunks + c) * K + k];
  return sums;
}

// out = map_of(row)(inputs...) for every element of [batch, n], sixteen at a time.
template <class MapOf, class Out, class... T>
inline void map_rows(int64_t batch, int64_t n, const MapOf& map_of, Out* out, const T*... inputs) {
  for_chunks(batch, n, [&](int64_t row, int64_t start, int64_t length) {
    const int64_t at = row * n + start;
    const auto map = map_of(row);
    vectorised([&]() VACCEL_INLINED {
      sweep(length, [&](int64_t i, auto span) VACCEL_INLINED {
        span.store(map(span.load(inputs + at + i)...), out + at + i);
      });
    });
  });
}

// -- tensors ---------------------------------------------------------------------------------------------------------

// Calls run(T{}) with the storage format of `type`.
template <class Run>
inline void for_dtype(ScalarType type, const Run& run) {
  for_format<Bf16, Fp16>(type, run);
}

// The reduction's results of each row of the inputs, all [B, ...] of one dtype: [B] in fp32, or [kResults, B].  What it
// stores on the way goes to `stored`, null for a reduction that stores nothing.
template <class Reduction, class Stored, class... Others>
inline Tensor reduced(const Reduction& reduction, Stored stored, const Tensor& first, const Others&... others) {
  constexpr int kResults = Reduction::kResults;
  const int64_t batch = first.size(0);
  Tensor out = new_results<kResults>(first);
  for_dtype(first.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const auto sums = sums_of_rows(batch, row_length(first), reduction, place<T>(stored), read<T>(dense(first)),
                                   read<T>(dense(others))...);
    for (int result = 0; result < kResults; ++result)
      for (int64_t row = 0; row < batch; ++row)
        write<float>(out)[result * batch + row] =
            static_cast<float>(Reduction::finish(&sums[row * Reduction::kSums], result));
  });
  return out;
}

// [B, ...]: a reduction of each row of the inputs, then the map that its sums and the row's length make.
template <class Reduction, class... Others>
inline Tensor reduced_then_mapped(const Reduction& reduction, const Tensor& magnitude, const Tensor& first,
                                  const Others&... others) {
  const Tensor lengths = dense(magnitude);
  const int64_t batch = first.size(0), n = row_length(first);
  Tensor out = torch::stable::new_empty(first, first.sizes());
  const auto passes = [&](const auto&... inputs) {
    for_dtype(first.scalar_type(), [&](auto type) {
      using T = decltype(type);
      const auto sums = sums_of_rows(batch, n, reduction, nullptr, read<T>(inputs)...);
      const auto map_of = [&](int64_t row) {
        return reduction.map(&sums[row * Reduction::kSums], read<float>(lengths)[row]);
      };
      map_rows(batch, n, map_of, write<T>(out), read<T>(inputs)...);
    });
  };
  passes(dense(first), dense(others)...);
  return out;
}

// out = map(inputs...) for every element; all of out's dtype and shape, out contiguous.
template <class Map, class... Inputs>
inline void mapped(Tensor& out, const Map& map, const Inputs&... inputs) {
  for_dtype(out.scalar_type(), [&](auto type) {
    using T = decltype(type);
    map_rows(1, out.numel(), [&](int64_t) { return map; }, write<T>(out), read<T>(dense(inputs))...);
  });
}

}  // namespace vaccel
