"""Builds the native parts against the torch that is installed; without compilers the package installs all the same.

Build with ``pip install --no-build-isolation -e .``: isolation would fetch another torch to compile against.
"""

import glob
import os
import shutil
import sys

from setuptools import Extension, setup

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc"))
from flags import ARCHITECTURES, CUDA_FLAGS, FLAGS

SOURCES = ["csrc/schemas.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))]
CUDA_SOURCES = sorted(glob.glob("csrc/cuda/*.cu"))
SOLVER_SOURCES = sorted(glob.glob("csrc/solver/*.cpp"))


def extensions():
    if os.environ.get("VACCEL_NATIVE") == "0":
        print("vaccel: VACCEL_NATIVE=0, building without native kernels", file=sys.stderr)
        return [], {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension
    except ImportError:
        print("vaccel: torch is not installed, building without native kernels", file=sys.stderr)
        return [], {}

    class OptionalBuild(BuildExtension):
        """A failed compile leaves the native part out, said once, instead of failing the installation."""

        def build_extension(self, ext):
            try:
                super().build_extension(ext)
            except Exception as error:  # compilers fail in many ways; the package works without
                print(f"vaccel: {ext.name} left out: {error}", file=sys.stderr)

        def build_extensions(self):
            try:
                super().build_extensions()
            except Exception as error:  # torch refuses an nvcc that does not fit it before anything is compiled
                print(f"vaccel: CUDA kernels left out: {error}", file=sys.stderr)
                self.extensions = [e for e in self.extensions if e.name != "vaccel._native_cuda"]
                super().build_extensions()

        def copy_extensions_to_source(self):
            built = [e for e in self.extensions if os.path.isfile(self.get_ext_fullpath_in_build(e))]
            self.extensions = built
            super().copy_extensions_to_source()

        def get_ext_fullpath_in_build(self, ext):
            name = self.get_ext_filename(self.get_ext_fullname(ext.name))
            return os.path.join(self.build_lib, name)

    def extension(make, name, sources, flags):
        headers = glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.cuh", recursive=True)
        include = [os.path.abspath("csrc/include")]
        made = make(name, sources, include_dirs=include, depends=headers, extra_compile_args=flags, py_limited_api=True)
        made.optional = True
        return made

    found = [extension(CppExtension, "vaccel._native", SOURCES, FLAGS), *solver()]
    if without := no_cuda():
        print(f"vaccel: building without CUDA kernels: {without}", file=sys.stderr)
    else:
        flags = {"cxx": FLAGS, "nvcc": [*CUDA_FLAGS, *architectures()]}
        found.append(extension(CUDAExtension, "vaccel._native_cuda", CUDA_SOURCES, flags))
    return found, {"build_ext": OptionalBuild.with_options(use_ninja=bool(shutil.which("ninja")))}


def solver():
    """The schedule solver's compiled core: one build a Python version, since pybind11 has no limited API."""
    try:
        import pybind11
    except ImportError:
        print("vaccel: pybind11 is not installed, building without the compiled schedule solver", file=sys.stderr)
        return []
    include, headers = [pybind11.get_include()], glob.glob("csrc/solver/*.h")
    options = {"include_dirs": include, "depends": headers, "extra_compile_args": FLAGS, "language": "c++"}
    return [Extension("vaccel._solver", SOLVER_SOURCES, optional=True, **options)]


def no_cuda():
    """Why the CUDA kernels cannot be built, or "" if they can."""
    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    if os.environ.get("VACCEL_CUDA") != "1":
        return "nothing uses them by default yet; VACCEL_CUDA=1 builds them"
    if torch.version.cuda is None:
        return "this torch has none"
    return "" if CUDA_HOME and shutil.which("nvcc", path=os.path.join(CUDA_HOME, "bin")) else "nvcc not found"


def architectures():
    """nvcc's flags for the GPUs of this machine, or for every generation it knows where there is none.

    The newest is kept as PTX too, for GPUs that come after it.
    """
    import subprocess

    import torch
    from torch.utils.cpp_extension import CUDA_HOME

    here = {"{}{}".format(*torch.cuda.get_device_capability(i)) for i in range(torch.cuda.device_count())}
    command = [os.path.join(CUDA_HOME, "bin", "nvcc"), "--list-gpu-arch"]
    known = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    chosen = sorted(here or {a for a in ARCHITECTURES if f"compute_{a}" in known}, key=int)
    return [f"-gencode=arch=compute_{a},code=[sm_{a}{f',compute_{a}' if a == chosen[-1] else ''}]" for a in chosen]


modules, commands = extensions()
setup(ext_modules=modules, cmdclass=commands)
