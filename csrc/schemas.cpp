// Every op's schema, in one place.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vaccel, m) {
  m.def("direction_magnitude(Tensor x, Tensor residual, Tensor magnitude) -> Tensor");
}
