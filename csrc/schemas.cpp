// Every op's schema, in one place.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vaccel, m) {
  m.def("norm(Tensor x) -> Tensor");
  m.def("cosine(Tensor a, Tensor b) -> Tensor");
  m.def("relative_l1(Tensor a, Tensor b) -> Tensor");
  m.def("cfg_combine(Tensor cond, Tensor uncond, float scale, Tensor(a!) out) -> ()");
  m.def("direction_magnitude(Tensor x, Tensor residual, Tensor magnitude) -> Tensor");
}
