"""Builds the native parts against the torch of the environment that they are installed into.

``VACCEL_NATIVE=1`` asks for the CPU kernels and the schedule solver, ``VACCEL_CUDA=1`` for the CUDA kernels: what is
asked for and cannot be built fails the installation with the compiler's message.  Without being asked, the CPU parts
are built where torch and a C++ compiler are at hand and otherwise left out; the CUDA kernels always are
(``vaccel-cu13`` has them built).  ``VACCEL_NATIVE=0`` builds nothing.  What was left out, and why, is in
``vaccel/_build.json``, which ``vaccel doctor`` shows.
"""

import glob
import json
import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "csrc"))
import cuda_library
from flags import FLAGS

SOURCES = ["csrc/schemas.cpp", *sorted(glob.glob("csrc/cpu/*.cpp"))]
SOLVER_SOURCES = sorted(glob.glob("csrc/solver/*.cpp"))
NATIVE, SOLVER, CUDA = "vaccel._native", "vaccel._solver", "vaccel._native_cuda"
NATIVE_ASKED, CUDA_ASKED = os.environ.get("VACCEL_NATIVE"), os.environ.get("VACCEL_CUDA") == "1"
#: part -> why it is left out; "" once it is built.
LEFT_OUT = dict.fromkeys((NATIVE, SOLVER, CUDA), "VACCEL_NATIVE=0 asked for none")


def torch():
    """torch, of the build's own environment or of the one that is installed into; None without one.

    pip builds in an environment of its own, where another torch would have to be downloaded to compile against, and it
    would not be the one that the result is loaded into.  The interpreter is the same, and knows where its packages are.
    """
    for folder in ("", sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        if folder and folder not in sys.path:
            sys.path.append(folder)
        try:
            import torch

            return torch
        except ImportError:
            continue
    return None


def extensions():
    """What is to be built."""
    if NATIVE_ASKED == "0":
        print("vaccel: VACCEL_NATIVE=0, building without the CPU's native parts", file=sys.stderr)
        if not CUDA_ASKED:
            return []
    found = []
    if torch() is None:
        missing = f"torch is not installed for {sys.executable}: install it first, then vaccel"
        _leave_out(NATIVE, missing, asked=NATIVE_ASKED == "1")
        _leave_out(CUDA, missing if CUDA_ASKED else NOT_ASKED, asked=CUDA_ASKED)
    else:
        if NATIVE_ASKED != "0":
            from torch.utils.cpp_extension import CppExtension

            headers = glob.glob("csrc/**/*.h", recursive=True)
            found.append(
                CppExtension(NATIVE, SOURCES, include_dirs=[os.path.abspath("csrc/include")], depends=headers,
                             extra_compile_args=FLAGS, py_limited_api=True)
            )  # fmt: skip
        if CUDA_ASKED:
            found.append(Extension(CUDA, sorted(glob.glob("csrc/cuda/*.cu")), py_limited_api=True))
        else:
            LEFT_OUT[CUDA] = NOT_ASKED
    if NATIVE_ASKED != "0":
        import pybind11  # which the build asks for

        # One build a Python version, since pybind11 has no limited API.
        options = {"include_dirs": [pybind11.get_include()], "depends": glob.glob("csrc/solver/*.h")}
        found.append(Extension(SOLVER, SOLVER_SOURCES, extra_compile_args=FLAGS, language="c++", **options))
    return found


NOT_ASKED = "not asked for: VACCEL_CUDA=1 builds them here, vaccel-cu13 has them built"


def _leave_out(part, why, *, asked):
    """Leaves a part out, said in one line; one that was asked for ends the installation."""
    if asked:
        raise SystemExit(f"vaccel: {part} was asked for and cannot be built: {why}")
    LEFT_OUT[part] = why.strip().splitlines()[-1] if why.strip() else "unknown"
    print(f"vaccel: {part} left out: {LEFT_OUT[part]}", file=sys.stderr)


def command():
    """``build_ext``: torch's where there is one, which knows how to compile against it."""
    if torch() is None:
        return _command(build_ext)
    from torch.utils.cpp_extension import BuildExtension

    return _command(BuildExtension.with_options(use_ninja=bool(shutil.which("ninja"))))


def _command(base):
    class Build(base):
        """Every part by itself: a failure ends the installation where the part was asked for."""

        def build_extensions(self):
            every, built = self.extensions, []
            for extension in every:
                self.extensions, name = [extension], extension.name
                try:
                    if name == CUDA:
                        chosen = cuda_library.architectures(os.environ.get("VACCEL_ARCHITECTURES"))
                        cuda_library.build(Path(self.get_ext_fullpath(name)), chosen)
                    else:
                        super().build_extensions()
                except (Exception, SystemExit) as error:  # compilers fail in many ways
                    _leave_out(name, str(error), asked=CUDA_ASKED if name == CUDA else NATIVE_ASKED == "1")
                    continue
                LEFT_OUT[name] = ""
                built.append(extension)
            self.extensions = built

        def run(self):
            super().run()
            said(self.build_lib)
            if self.inplace:
                said(".")

    return Build


class Packages(build_py):
    """Without native parts too what was left out is said."""

    def run(self):
        super().run()
        said("." if self.editable_mode else self.build_lib)


def said(folder):
    """Writes what was left out beside the package in a folder."""
    path = Path(folder, "vaccel", "_build.json")
    if folder == "." and not modules and path.exists():  # of an earlier build, whose parts are still there
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    told = {"torch": getattr(torch(), "__version__", None), "left_out": LEFT_OUT}
    path.write_text(json.dumps(told, indent=1) + "\n")


modules = extensions()
setup(ext_modules=modules, cmdclass={"build_ext": command(), "build_py": Packages})
