"""vaccel as a cache backend of vLLM-Omni, whose wheel is the real one; of vLLM there is a double (``vllm_double.py``).

The cases are in ``vllm_omni_cases.py`` and run in a process of their own: there a package passes for vLLM that is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm_double

CASES = Path(__file__).parent / "vllm_omni_cases.py"


@pytest.mark.skipif(vllm_double.found() is None, reason="vllm-omni is not installed: `make test` brings it")
def test_the_backend_in_their_classes():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CASES.parent), *sys.path])}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "--tb=short",
        str(CASES),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=CASES.parents[1],
                          timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_of_it_is_imported_without_a_host():
    """The room of a host that is not here must not keep vaccel, nor its entry point, from working."""
    code = (
        "import sys; sys.modules['vllm_omni'] = None; import logging; logging.basicConfig(); "
        "from vaccel.serving.vllm_omni import register; register()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no cache backend of this vLLM-Omni" in done.stderr
