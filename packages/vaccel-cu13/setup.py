"""Builds the CUDA kernels of ``../../csrc`` into the wheel; fails with the compiler's message where it cannot."""

import os
import sys
import sysconfig
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent.parent / "csrc")]
sys.path += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]  # torch, of the environment outside


class Build(build_py):
    def run(self):
        import cuda_library

        super().run()
        chosen = os.environ.get("VACCEL_ARCHITECTURES") or ";".join(cuda_library.ALL_ARCHITECTURES)
        out = Path(self.build_lib, "vaccel_cu13", "_native_cuda.so")
        cuda_library.build(out, cuda_library.architectures(chosen))


class Wheel(bdist_wheel):
    """One for every Python: the library knows torch's stable ABI alone."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class Binary(Distribution):
    def has_ext_modules(self):
        return True


setup(distclass=Binary, cmdclass={"build_py": Build, "bdist_wheel": Wheel})
