"""How the native sources are compiled, for setup.py and compile_check.py alike."""

# The lowest torch the stable ABI calls used here exist in: one build serves it and every later release.
TORCH_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"
# No contraction: a kernel then gives the same bits on AVX-512, AVX2 and SSE2.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off", TORCH_TARGET]
# Nor on a GPU: where eager torch rounds, so do the kernels.
CUDA_FLAGS = ["-std=c++17", "-O3", "-fmad=false", "-DUSE_CUDA", TORCH_TARGET]
# GPU generations that the sources are checked for: A100, H100 and H200, B200.
ARCHITECTURES = ("80", "90", "100")
# And that a library for any machine is built for: A10 and RTX 30, L4 and RTX 40, RTX 50 too.
ALL_ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
