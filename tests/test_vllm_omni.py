"""vaccel as a cache backend of vLLM-Omni, whose wheel is the real one; of vLLM there is a double (``vllm_double.py``).

The cases are in ``vllm_omni_cases.py`` and two files beside it, and run in processes of their own: there a
package passes for vLLM that is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm_double

CASES = [Path(__file__).parent / f"vllm_omni_{name}.py" for name in ("cases", "pipelines", "ranks")]


@pytest.mark.skipif(vllm_double.found() is None, reason="vllm-omni is not installed: `make test` brings it")
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_the_backend_in_their_classes(cases):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(cases.parent), *sys.path])}
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
        str(cases),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cases.parents[1],
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
