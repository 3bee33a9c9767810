"""Builds the native part against the torch that is installed; without a compiler the package installs all the same.

Build with ``pip install --no-build-isolation -e .``: isolation would fetch another torch to compile against.
"""

import glob
import os
import shutil
import sys

from setuptools import setup

# No contraction: a kernel then gives the same bits on AVX-512, AVX2 and SSE2.
FLAGS = ["-O3", "-std=c++17", "-fno-math-errno", "-ffp-contract=off"]
# The lowest torch the stable ABI calls used here exist in: one build serves it and every later release.
TORCH_TARGET = "0x020b000000000000"
SOURCES = ["csrc/schemas.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))]


def extensions():
    if os.environ.get("VACCEL_NATIVE") == "0":
        print("vaccel: VACCEL_NATIVE=0, building without native kernels", file=sys.stderr)
        return [], {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        print("vaccel: torch is not installed, building without native kernels", file=sys.stderr)
        return [], {}
    print("vaccel: no CUDA kernels in this version; nvcc %s" % (shutil.which("nvcc") or "not found"), file=sys.stderr)

    class OptionalBuild(BuildExtension):
        """A failed compile leaves the native part out, said once, instead of failing the installation."""

        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except Exception as error:  # compilers fail in many ways; the package works without
                print(f"vaccel: native kernels left out: {error}", file=sys.stderr)

        def copy_extensions_to_source(self):
            built = [e for e in self.extensions if os.path.isfile(self.get_ext_fullpath_in_build(e))]
            self.extensions = built
            super().copy_extensions_to_source()

        def get_ext_fullpath_in_build(self, ext):
            name = self.get_ext_filename(self.get_ext_fullname(ext.name))
            return os.path.join(self.build_lib, name)

    extension = CppExtension(
        "vaccel._native",
        SOURCES,
        include_dirs=[os.path.abspath("csrc/include")],
        extra_compile_args=[*FLAGS, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"],
        py_limited_api=True,
    )
    extension.optional = True
    return [extension], {"build_ext": OptionalBuild.with_options(use_ninja=bool(shutil.which("ninja")))}


modules, commands = extensions()
setup(ext_modules=modules, cmdclass=commands)
