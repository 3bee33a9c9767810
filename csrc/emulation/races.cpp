// Every kernel template of rows.cuh and channels.cuh, without torch, against sums in double: to be built with
// -fsanitize=thread, which reports what two device threads touch without a barrier between them.
#include <cuda_runtime.h>

#include <vaccel/channels.cuh>

#include <random>

using namespace vaccel;

namespace {

int wrong = 0;

void same(const char* what, double found, double expected, double tolerance) {
  if (std::fabs(found - expected) <= tolerance) return;
  if (++wrong <= 10) std::printf("%s: %.9g instead of %.9g\n", what, found, expected);
}

// A buffer full of NaN, of exactly as many elements as are asked for, from `shift` elements past a wide boundary.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count, int shift = 0) : kept_(new unsigned char[(count + shift) * sizeof(T) + 64]) {
    const auto from = (reinterpret_cast<uintptr_t>(kept_.get()) + 63) / 64 * 64;
    at = reinterpret_cast<T*>(from) + shift;
    for (int64_t i = 0; i < count; ++i) at[i] = narrow<T>(NAN);
  }
  T* at;
  double operator[](int64_t i) const { return widen(at[i]); }

 private:
  std::unique_ptr<unsigned char[]> kept_;
};

template <class Kernel, class... Arguments>
void run(bool cooperative, int64_t blocks, Kernel kernel, Arguments... arguments) {
  emulated::launch(static_cast<unsigned>(blocks), kThreads, cooperative, [=] { kernel(arguments...); });
}

template <class T>
struct Rows {
  int64_t batch, n, chunks;
  int shift;
  Buffer<T> a, b, c;
  Rows(int64_t batch, int64_t n, int shift)
      : batch(batch), n(n), chunks((n + kChunk<T> - 1) / kChunk<T>), shift(shift), a(batch * n, shift), b(batch * n, shift),
        c(batch * n, shift) {
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < batch * n; ++i) {
      a.at[i] = narrow<T>(normal(random));
      b.at[i] = narrow<T>(normal(random));
      c.at[i] = narrow<T>(normal(random));
    }
  }
  int64_t together() const { return std::min<int64_t>(batch * chunks, emulated::processors()); }
};

template <int W, class T>
void maps(Rows<T>& rows, double eps) {
  const int64_t all = rows.batch * rows.n;
  Buffer<T> out(all, rows.shift);
  run(false, (all + kChunk<T> - 1) / kChunk<T>, map_kernel<W, T, Guided, T, T>, all, Guided{3}, out.at,
      static_cast<const T*>(rows.a.at), static_cast<const T*>(rows.b.at));
  for (int64_t i = 0; i < all; ++i)
    // Three roundings, of terms up to three times as large as both inputs together.
    same("guided", out[i], rows.b[i] + 3 * (rows.a[i] - rows.b[i]),
         8 * eps * (std::fabs(rows.a[i]) + std::fabs(rows.b[i])));
}

template <int W, class T>
void reductions(Rows<T>& rows, double eps) {
  Buffer<float> partial(rows.batch * rows.chunks * 3), results(rows.batch * 2);
  Buffer<T> stored(rows.batch * rows.n, rows.shift);
  run(true, rows.together(), reduce_kernel<W, T, DifferenceStats, T*, T, T, T>, rows.batch, rows.n, DifferenceStats{},
      partial.at, results.at, stored.at, static_cast<const T*>(rows.a.at), static_cast<const T*>(rows.b.at),
      static_cast<const T*>(rows.c.at));
  for (int64_t row = 0; row < rows.batch; ++row) {
    double squares = 0, changes = 0, sizes = 0;
    for (int64_t i = row * rows.n; i < (row + 1) * rows.n; ++i) {
      squares += rows.a[i] * rows.a[i];
      changes += std::fabs(rows.a[i] - rows.c[i]);
      sizes += std::fabs(rows.c[i]);
      same("stored difference", stored[i], rows.a[i] - rows.b[i], 8 * eps);
    }
    same("norm", results[row], std::sqrt(squares), 1e-5 * std::sqrt(squares));
    same("relative change", results[rows.batch + row], changes / sizes, 1e-5 * changes / sizes);
  }
}

template <int W, class T>
void reductions_then_maps(Rows<T>& rows, double eps) {
  Buffer<float> partial(rows.batch * rows.chunks), magnitude(rows.batch);
  Buffer<T> out(rows.batch * rows.n, rows.shift);
  for (int64_t row = 0; row < rows.batch; ++row) magnitude.at[row] = 1.5f + row;
  run(true, rows.together(), reduce_then_map_kernel<W, T, DirectionMagnitude, T, T>, rows.batch, rows.n,
      DirectionMagnitude{}, partial.at, static_cast<const float*>(magnitude.at), out.at,
      static_cast<const T*>(rows.a.at), static_cast<const T*>(rows.b.at));
  for (int64_t row = 0; row < rows.batch; ++row) {
    double squares = 0;
    for (int64_t i = row * rows.n; i < (row + 1) * rows.n; ++i) squares += std::pow(rows.a[i] + rows.b[i], 2);
    const double factor = magnitude[row] / std::sqrt(squares);
    for (int64_t i = row * rows.n; i < (row + 1) * rows.n; ++i)
      same("direction and magnitude", out[i], factor * (rows.a[i] + rows.b[i]), 40 * eps + 1e-6);
  }
}

// The channels lie along the last dimension, or each has a row of its own.
template <int W, Factors kFactors, class T>
void combinations(Rows<T>& rows, double eps) {
  const bool along = kFactors == Factors::kAlong;
  const int64_t channels = along ? W : 2, inner = along ? 1 : rows.n / channels, all = rows.batch * rows.n;
  if (rows.n % channels != 0) return;
  Buffer<float> factors(3 * rows.batch * channels);
  for (int64_t i = 0; i < 3 * rows.batch * channels; ++i) factors.at[i] = static_cast<float>(i % 5) - 2;
  Buffer<T> out(all, rows.shift);
  const Combined<T> in{3, factors.at, {rows.a.at, rows.b.at, rows.c.at}};
  run(false, (all + kChunk<T> - 1) / kChunk<T>, combine_kernel<W, kFactors, T, Combination>, all,
      Channels{rows.batch, rows.n, channels, inner}, Combination{}, in, out.at);
  for (int64_t i = 0; i < all; ++i) {
    const int64_t set = i / rows.n * channels + i / inner % channels, table = rows.batch * channels;
    same("combination", out[i],
         factors[set] * rows.a[i] + factors[table + set] * rows.b[i] + factors[2 * table + set] * rows.c[i], 40 * eps);
  }
}

template <int W, class T>
void all(int64_t batch, int64_t n, double eps, int shift = 0) {
  Rows<T> rows(batch, n, shift);
  maps<W, T>(rows, eps);
  reductions<W, T>(rows, eps);
  reductions_then_maps<W, T>(rows, eps);
  if (n / 2 % W == 0 && shift == 0) combinations<W, Factors::kShared, T>(rows, eps);
  if (n % W == 0 && shift == 0) combinations<W, Factors::kAlong, T>(rows, eps);
  if (n / 2 >= W) combinations<W, Factors::kSplit, T>(rows, eps);
}

}  // namespace

int main() {
  const double single = 6e-8, bf16 = 4e-3, half = 5e-4;
  all<1, float>(1, 1, single);
  all<1, float>(3, kChunk<float> + 1, single);
  all<4, float>(2, 2 * kChunk<float> + 8, single);
  all<1, float>(2, kChunk<float> + 3, single, 1);
  all<8, __nv_bfloat16>(3, kChunk<__nv_bfloat16> + 16, bf16);
  all<1, __nv_bfloat16>(2, kChunk<__nv_bfloat16> + 1, bf16);
  all<8, __half>(2, 16, half);
  all<1, __half>(5, 33, half);
  // Heads and tails: rows shorter than a pack, of odd length, and tensors that start past a boundary.
  all<4, float>(3, 2, single, 3);
  all<4, float>(3, kChunk<float> + 6, single);
  all<4, float>(2, kChunk<float> + 1, single, 1);
  all<8, __nv_bfloat16>(3, 2 * kChunk<__nv_bfloat16> - 2, bf16, 5);
  all<8, __half>(5, 34, half, 7);
  std::printf("%d wrong values\n", wrong);
  return wrong != 0;
}
