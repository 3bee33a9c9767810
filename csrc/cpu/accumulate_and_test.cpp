// accumulate_and_test(E, c): E <- E + offset + factor c; the flag says whether any sample is past the threshold.
#include "vector.h"

using namespace vaccel;

// error, change: [B] in fp32, error contiguous; exceeded: one int32.
void accumulate_and_test_cpu(Tensor error, Tensor change, double offset, double factor, double threshold,
                             Tensor exceeded) {
  change = dense(change);
  const Accumulate step{static_cast<float>(offset), static_cast<float>(factor), static_cast<float>(threshold)};
  float* total = write<float>(error);
  bool past = false;
  for (int64_t row = 0; row < error.numel(); ++row) {
    total[row] = step(total[row], read<float>(change)[row]);
    past |= step.past(total[row]);
  }
  write<int32_t>(exceeded)[0] = past;
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CPU, m) { m.impl("accumulate_and_test", TORCH_BOX(&accumulate_and_test_cpu)); }
