"""vaccel's CUDA kernels, built for CUDA 13; vaccel finds and loads them."""

from pathlib import Path

__version__ = "0.2.0"
#: The library.
LIBRARY = Path(__file__).resolve().parent / "_native_cuda.so"
