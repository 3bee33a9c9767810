// Every op's schema, in one place.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vaccel, m) {
  m.def("norm(Tensor x) -> Tensor");
  m.def("cosine(Tensor a, Tensor b) -> Tensor");
  m.def("relative_l1(Tensor a, Tensor b) -> Tensor");
  m.def("residual_store(Tensor v, Tensor x, Tensor(a!) out) -> ()");
  m.def("residual_store_stats(Tensor v, Tensor x, Tensor last, Tensor(a!) out) -> Tensor");
  m.def("direction_magnitude(Tensor x, Tensor residual, Tensor magnitude) -> Tensor");
  m.def(
      "direction_magnitude_guided(Tensor x, Tensor cond, Tensor uncond, Tensor magnitude, float scale) -> Tensor");
  m.def("cfg_combine(Tensor cond, Tensor uncond, float scale, Tensor(a!) out) -> ()");
  m.def("cfg_delta_store(Tensor cond, Tensor uncond, Tensor(a!) out) -> ()");
  m.def("cfg_delta_reuse(Tensor cond, Tensor delta, float scale, Tensor(a!) out) -> ()");
  m.def("linear_combination(Tensor[] tensors, Tensor coefficients, Tensor(a!) out, int channel_dim=1) -> ()");
  m.def(
      "linear_combination_guided(Tensor[] cond, Tensor[] uncond, Tensor coefficients, float scale, Tensor(a!) out, "
      "int channel_dim=1) -> ()");
  m.def("block_store(Tensor x, Tensor(a!) out) -> ()");
  m.def("block_reuse(Tensor x, Tensor residual, Tensor(a!) out) -> ()");
  m.def(
      "accumulate_and_test(Tensor(a!) error, Tensor change, float offset, float factor, float threshold, "
      "Tensor(b!) exceeded) -> ()");
}
