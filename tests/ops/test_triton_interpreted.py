"""Every op's tests with its Triton kernel under Triton's interpreter, on GPU machines too.

Without a GPU they are among the others (``harness.impls``): the test process itself has the interpreter.  With one
there the kernels are compiled, and the interpreter, which has to be asked for before Triton is imported, needs a
process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest


def test_triton_kernels_under_the_interpreter():
    pytest.importorskip("triton")
    if harness.interpreted("triton"):
        assert "triton" in harness.names()
        return
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(Path(__file__).parent)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
