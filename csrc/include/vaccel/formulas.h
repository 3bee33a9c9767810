// What every op computes, written once for all processors: V is one float on a GPU, sixteen of them on a CPU.
//
// A map gives an element of the output.  A reduction adds an element to its kSums sums and finishes a row's sums, then
// in double, to kResults numbers; what its operator returns, if anything, is stored on the way.
#pragma once

#include <cmath>

#if defined(__CUDACC__)
#define VACCEL_FORMULA __host__ __device__ __forceinline__
#else
#define VACCEL_FORMULA inline __attribute__((always_inline))
#endif

namespace vaccel {

template <class V>
VACCEL_FORMULA V magnitude(const V& v) {
  return v < V{} ? -v : v;
}

// -- norm, cosine, relative_l1 ---------------------------------------------------------------------------------------

struct Norm {
  static constexpr int kSums = 1, kResults = 1;
  template <class V>
  VACCEL_FORMULA void operator()(V* sum, const V& x) const {
    sum[0] += x * x;
  }
  static VACCEL_FORMULA double finish(const double* sum, int) { return sqrt(sum[0]); }
};

struct Cosine {
  static constexpr int kSums = 3, kResults = 1;
  template <class V>
  VACCEL_FORMULA void operator()(V* sum, const V& a, const V& b) const {
    sum[0] += a * b;
    sum[1] += a * a;
    sum[2] += b * b;
  }
  static VACCEL_FORMULA double finish(const double* sum, int) { return sum[0] / (sqrt(sum[1]) * sqrt(sum[2])); }
};

struct RelativeL1 {
  static constexpr int kSums = 2, kResults = 1;
  template <class V>
  VACCEL_FORMULA void operator()(V* sum, const V& a, const V& b) const {
    sum[0] += magnitude(a - b);
    sum[1] += magnitude(b);
  }
  static VACCEL_FORMULA double finish(const double* sum, int) { return sum[0] / sum[1]; }
};

// -- residual_store --------------------------------------------------------------------------------------------------

struct Difference {
  template <class V>
  VACCEL_FORMULA V operator()(const V& v, const V& x) const {
    return v - x;
  }
};

// Result 0: norm(v); result 1: relative_l1(v, last).
struct DifferenceStats {
  static constexpr int kSums = 3, kResults = 2;
  template <class V>
  VACCEL_FORMULA V operator()(V* sum, const V& v, const V& x, const V& last) const {
    sum[0] += v * v;
    sum[1] += magnitude(v - last);
    sum[2] += magnitude(last);
    return v - x;
  }
  static VACCEL_FORMULA double finish(const double* sum, int result) {
    return result == 0 ? sqrt(sum[0]) : sum[1] / sum[2];
  }
};

// -- direction_magnitude ---------------------------------------------------------------------------------------------

// The reduction comes first; `map` is what its sums make of the second pass.
// What gives a row with this sum of squares that length; a row of zeros has no direction and stays as it is.
VACCEL_FORMULA float factor_to(float length, double squares) {
  return squares == 0 ? 0.0f : static_cast<float>(length / sqrt(squares));
}

struct DirectionMagnitude {
  struct Map {
    float scale;
    template <class V>
    VACCEL_FORMULA V operator()(const V& x, const V& residual) const {
      return (x + residual) * scale;
    }
  };
  static constexpr int kSums = 1;
  template <class V>
  VACCEL_FORMULA void operator()(V* sum, const V& x, const V& residual) const {
    const V direction = x + residual;
    sum[0] += direction * direction;
  }
  VACCEL_FORMULA Map map(const double* sum, float length) const {
    return {factor_to(length, sum[0])};
  }
};

// Both branches at one length, and their combination u + w (c - u).
struct DirectionMagnitudeGuided {
  struct Map {
    float cond_scale, uncond_scale, guidance;
    template <class V>
    VACCEL_FORMULA V operator()(const V& x, const V& cond, const V& uncond) const {
      const V c = (x + cond) * cond_scale, u = (x + uncond) * uncond_scale;
      return u + guidance * (c - u);
    }
  };
  static constexpr int kSums = 2;
  float guidance;
  template <class V>
  VACCEL_FORMULA void operator()(V* sum, const V& x, const V& cond, const V& uncond) const {
    const V c = x + cond, u = x + uncond;
    sum[0] += c * c;
    sum[1] += u * u;
  }
  VACCEL_FORMULA Map map(const double* sum, float length) const {
    return {factor_to(length, sum[0]), factor_to(length, sum[1]), guidance};
  }
};

// -- cfg_combine, cfg_delta_store, cfg_delta_reuse -------------------------------------------------------------------

struct Guided {
  float scale;
  template <class V>
  VACCEL_FORMULA V operator()(const V& cond, const V& uncond) const {
    return uncond + scale * (cond - uncond);
  }
};

struct Delta {
  template <class V>
  VACCEL_FORMULA V operator()(const V& cond, const V& uncond) const {
    return uncond - cond;
  }
};

struct GuidedByDelta {
  float rest;  // 1 - scale
  template <class V>
  VACCEL_FORMULA V operator()(const V& cond, const V& delta) const {
    return cond + rest * delta;
  }
};

// -- linear_combination ----------------------------------------------------------------------------------------------

// What a sum starts from, -0: adding it changes nothing, not even the sign of a zero.
template <class V>
VACCEL_FORMULA V nothing() {
  return -V{};
}

// Tensor after tensor is added to each branch's sum; the formula makes an element of the sums.
template <class C, class V>
VACCEL_FORMULA V added(const V& sum, const C& coefficient, const V& value) {
  return sum + coefficient * value;
}

struct Combination {
  static constexpr int kBranches = 1;
  template <class V>
  VACCEL_FORMULA V operator()(const V* sums) const {
    return sums[0];
  }
};

struct GuidedCombination {
  static constexpr int kBranches = 2;
  float scale;
  template <class V>
  VACCEL_FORMULA V operator()(const V* sums) const {
    return Guided{scale}(sums[0], sums[1]);
  }
};

// -- block_store, block_reuse ----------------------------------------------------------------------------------------

struct Copy {
  template <class V>
  VACCEL_FORMULA V operator()(const V& x) const {
    return x;
  }
};

struct Sum {
  template <class V>
  VACCEL_FORMULA V operator()(const V& x, const V& residual) const {
    return x + residual;
  }
};

// -- accumulate_and_test ---------------------------------------------------------------------------------------------

// The error after a step, and whether it is past the threshold; NaN is.
struct Accumulate {
  float offset, factor, threshold;
  VACCEL_FORMULA float operator()(float error, float change) const { return error + (offset + factor * change); }
  VACCEL_FORMULA bool past(float error) const { return !(error <= threshold); }
};

}  // namespace vaccel
