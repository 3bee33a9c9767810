// accumulate_and_test(E, c): E <- E + offset + factor c; the flag says whether any sample is past the threshold.
#include "launch.h"

using namespace vaccel;

// error [batch] and the flag, by one block.
__global__ void __launch_bounds__(kThreads)
    accumulate_kernel(int64_t batch, Accumulate step, float* error, const float* change, int32_t* exceeded) {
  bool past = false;
  for (int64_t row = threadIdx.x; row < batch; row += kThreads) {
    error[row] = step(error[row], change[row]);
    past |= step.past(error[row]);
  }
  past = __syncthreads_or(past);
  if (threadIdx.x == 0) *exceeded = past;
}

// error, change: [B] in fp32, error contiguous; exceeded: one int32.
void accumulate_and_test_cuda(Tensor error, Tensor change, double offset, double factor, double threshold,
                              Tensor exceeded) {
  change = dense(change);
  const Accumulate step{static_cast<float>(offset), static_cast<float>(factor), static_cast<float>(threshold)};
  const Launcher launch(error);
  launch(accumulate_kernel, 1, error.numel(), step, write<float>(error), read<float>(change), write<int32_t>(exceeded));
}

STABLE_TORCH_LIBRARY_IMPL(vaccel, CUDA, m) { m.impl("accumulate_and_test", TORCH_BOX(&accumulate_and_test_cuda)); }
