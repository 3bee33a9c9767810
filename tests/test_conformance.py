"""Every pipeline of the zoo against its own loop with substituted outputs (tests/zoo/check.py).

``make conformance`` runs all of them; elsewhere a share is run, another one for every commit.  One of them alone:
``VACCEL_CONFORMANCE=all pytest tests/test_conformance.py -k LTX2Pipeline``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from zoo import load_all
from zoo.check import check, check_batch, check_guidance_ends, check_without_guidance
from zoo.known import KNOWN
from zoo.memory import check_memory
from zoo.methods import check_methods

CASES = load_all()
#: One pipeline in so many is run for a commit; these always are.
SHARES = 12
ALWAYS = (
    "WanPipeline-two-stages",
    "StableDiffusionPipeline",
    "LTX2Pipeline",
    "ZImagePipeline",
    "Flux2KleinKVPipeline",
    "StableCascadeCombinedPipeline",
)


def share() -> list[str]:
    """The names of those to run: the same ones in every process of a run."""
    if os.environ.get("VACCEL_CONFORMANCE") == "all":
        return list(CASES)
    said = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    number = int(hashlib.sha256(said.stdout.encode()).hexdigest(), 16) % SHARES
    return [name for n, name in enumerate(CASES) if n % SHARES == number or name in ALWAYS]


@pytest.mark.parametrize("name", share())
def test_a_pipeline(name):
    wrong = check(CASES[name]) if name not in KNOWN else []
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("name", [name for name in share() if name not in KNOWN and CASES[name].guidance is not None])
def test_without_guidance(name):
    wrong = check_without_guidance(CASES[name])
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("name", [name for name in share() if name not in KNOWN and CASES[name].guidance is not None])
def test_guidance_ends_in_mid_run(name):
    wrong = check_guidance_ends(CASES[name])
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("name", [name for name in share() if name not in KNOWN and CASES[name].batch is not None])
def test_two_prompts(name):
    wrong = check_batch(CASES[name])
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("name", [name for name in share() if name not in KNOWN])
def test_memory_is_planned_to_the_byte(name):
    assert not check_memory(CASES[name])


@pytest.mark.parametrize("name", [name for name in share() if name in KNOWN])
def test_what_cannot_be_accelerated_says_so(name):
    """By the error that is known of it, and never in silence."""
    with pytest.raises(Exception, match=KNOWN[name].error):
        raise AssertionError(f"not as it is known: {check(CASES[name])}")


@pytest.mark.parametrize("name", ALWAYS)
def test_every_method(name):
    wrong = {method: said for method, said in check_methods(CASES[name]).items() if said}
    assert not wrong
