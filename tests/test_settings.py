"""Settings that users make on a pipeline, before, after and between accelerated runs (tests/settings).

``make settings`` runs the whole matrix; here a share is run, another one for every commit, and some always.  One of
them alone: ``VACCEL_SETTINGS=all pytest tests/test_settings.py -k "group offload"``.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from settings import load_all
from settings.offload import CPU, elsewhere
from settings.runner import cells
from settings.subjects import SUBJECTS

import vaccel
from vaccel.models.compiling import compiler_of, full_graph
from vaccel.models.offload import group_hook

SETTINGS = load_all()
#: One of so many is run for a commit; these always are.
SHARES = 12
ALWAYS = (("group offload, two blocks", "wan"), ("full, with a graph break", "wan"), ("torch.autocast", "wan"),
          ("another transformer", "wan"))  # fmt: skip
SCHEDULE = vaccel.Schedule([0, 1, 4, 8], num_steps=12)


def share() -> list[tuple[str, str]]:
    """(setting, pipeline) of those to run: the same ones in every process of a run."""
    every = [(name, pipe) for name, setting in SETTINGS.items() for pipe in setting.pipes]
    if os.environ.get("VACCEL_SETTINGS") == "all":
        return every
    said = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    number = int(hashlib.sha256(said.stdout.encode()).hexdigest(), 16) % SHARES
    fast = [(name, "flux") for name, setting in SETTINGS.items() if setting.fast]
    return [one for n, one in enumerate(every) if n % SHARES == number or one in (*fast, *ALWAYS)]


def marked(one: tuple[str, str]) -> object:
    setting = SETTINGS[one[0]]
    is_fast = setting.fast and one[1] == "flux"
    return pytest.param(*one, marks=pytest.mark.fast if is_fast else (), id=f"{one[0]}-{one[1]}")


@pytest.mark.parametrize(("name", "pipe"), [marked(one) for one in share()])
def test_a_setting(name, pipe):
    setting = SETTINGS[name]
    if setting.missing:
        pytest.skip(f"needs {', '.join(setting.missing)}: `make settings` brings that and runs it (docs/settings.md)")
    wrong = [f"{cell.order}, {cell.method}: {cell.said}" for cell in cells(setting, pipe) if cell.outcome == "wrong"]
    assert not wrong, "\n".join(wrong)


def test_every_setting_says_how_it_is_made():
    assert all(setting.recipe and setting.pipes and setting.group for setting in SETTINGS.values())


def test_groups_have_their_leaders_back(wan):
    """A view that calls but a part of a group has another block lead it, for the length of the call."""
    wan.transformer.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=2
    )
    elsewhere(wan.transformer)
    groups = [group_hook(block).group for block in wan.transformer.blocks]
    before = [(group.onload_leader, group.offload_leader) for group in groups]
    with vaccel.accelerate(wan, vaccel.Schedule.from_timeline("FFbFbF")):
        assert torch.isfinite(tiny.latents(wan, steps=6)).all()
    assert [(group.onload_leader, group.offload_leader) for group in groups] == before
    assert all(torch.isnan(p).all() for p in wan.transformer.blocks.parameters()), "and were taken away again"


def test_the_embedding_is_read_with_its_weights_there_and_leaves_none_there(wan):
    plain = tiny.wan_pipeline()
    method = vaccel.TeaCache(0.6, (1.0, 0.0))
    with vaccel.accelerate(plain, method) as handle:
        expected, timeline = tiny.latents(plain), handle.trace.timeline()
    wan.transformer.enable_group_offload(
        onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1
    )
    elsewhere(wan.transformer)
    with vaccel.accelerate(wan, method) as handle:
        assert torch.equal(tiny.latents(wan), expected)
        assert handle.trace.timeline() == timeline
        assert "r" in timeline
    assert torch.isnan(wan.transformer.condition_embedder.time_embedder.linear_1.weight).all()


def test_a_wrapped_unet_is_refused_with_the_way_out():
    pipe = SUBJECTS["sd"].build()
    pipe.unet = torch.compile(pipe.unet)
    with pytest.raises(ValueError, match="compile=True"):
        vaccel.accelerate(pipe, SCHEDULE)


def test_views_are_compiled_as_the_model_was(wan):
    seen = []

    def backend(graph, examples):
        seen.append(len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()
    assert compiler_of(wan.transformer) is None
    wan.transformer.compile(backend=backend, dynamic=False)
    assert compiler_of(wan.transformer) is not full_graph, "where torch keeps the options is elsewhere now"
    with vaccel.accelerate(wan, SCHEDULE):
        tiny.latents(wan)
    assert seen
    torch._dynamo.reset()


def test_compiling_between_runs_compiles_what_an_earlier_run_has_made(wan):
    seen = []

    def backend(graph, examples):
        seen.append(graph)
        return graph.forward

    torch._dynamo.reset()
    with vaccel.accelerate(wan, SCHEDULE):
        first = tiny.latents(wan)
        wan.transformer.compile(backend=backend)
        assert torch.equal(tiny.latents(wan), first)
        assert len(seen) >= 2, "the recording view and the reusing one"
        count = len(seen)
        wan.transformer._compiled_call_impl = None
        assert torch.equal(tiny.latents(wan), first)
        assert len(seen) == count
    torch._dynamo.reset()
