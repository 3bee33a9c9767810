"""Several ranks that make one video: equal to one process up to rounding, and of one mind at every step."""

from __future__ import annotations

import json
import re
from pathlib import Path

import processes
import pytest
import ranks
import torch

import vaccel
from vaccel.parallel.agreement import _flatten, _largest, _shaped
from vaccel.parallel.exchange import limit
from vaccel.parallel.sharing import _along, agreement_of, shared_with

EVERY = list(ranks.METHODS)
#: Ways of sharing a model -> the methods that are tried with it, on two ranks and on four.
TWO = {"ulysses 2": EVERY, "ring 2": ["plain", "easycache"], "tensor": ["plain", "blocks", "prior", "direction"]}
FOUR = {"ring 2, ulysses 2": ["plain", "blocks", "mixcache"], "tensor": ["plain", "direction"]}
#: Methods that decide nothing on the way.
FIXED = ("blocks", "resume", "forecast")
#: Units in the last place of the stream that a block adds to, by which its three sums (both attentions, the
#: feed-forward) may be off where ranks add their terms in another order: one each.
UNITS = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ranks")
    processes.together(ranks.shares, str(made), TWO, count=2)
    return made


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    made = tmp_path_factory.mktemp("ranks4")
    processes.together(ranks.shares, str(made), FOUR, count=4)
    return made


@pytest.fixture(scope="module")
def alone():
    """What one process makes, and how far rounding of that kind takes it: {method: (latents, timeline, allowed)}."""
    pipe = ranks.pipeline()
    clips, said = ranks.made(pipe, EVERY)
    hooks = [block.register_forward_hook(_rounding(number)) for number, block in enumerate(pipe.transformer.blocks)]
    others, _ = ranks.made(pipe, EVERY)
    for hook in hooks:
        hook.remove()
    off = {name: float((others[name] - clips[name]).abs().max()) for name in EVERY}
    # Both the ranks' result and the perturbed one are off from the exact one by as much.
    return {name: (clips[name], said[name]["timeline"], 2 * off[name]) for name in EVERY}


def _rounding(number: int):
    noise = torch.Generator().manual_seed(number)

    def off(module, args, output):
        size = output.abs().amax(-1, keepdim=True) * torch.finfo(output.dtype).eps * UNITS
        return output + size * (2 * torch.rand(output.shape, generator=noise) - 1)

    return off


@pytest.mark.parametrize(("way", "name"), [(way, name) for way, names in TWO.items() for name in names])
def test_two_ranks(way, name, folder, alone):
    _equal(folder, way, name, 2, alone)


@pytest.mark.parametrize(("way", "name"), [(way, name) for way, names in FOUR.items() for name in names])
def test_four_ranks(way, name, four, alone):
    _equal(four, way, name, 4, alone)


def _equal(folder, way, name, count, alone):
    clip, timeline, allowed = alone[name]
    assert name == "plain" or set(timeline) - {"F"}, "something is to be skipped"
    for clips, said in (found := ranks.read(folder, way.replace(" ", ""), count)):
        assert said[name]["timeline"] == timeline
        assert torch.equal(clips[name], found[0][0][name]), "the same on every rank"
        assert float((clips[name] - clip).abs().max()) <= allowed
        if name != "plain":
            every = ", ".join(map(str, range(count)))
            assert f"{count} ranks decide together: {every}" in said[name]["notes"]
            asked = said[name]["exchanges"] - 2  # its method and number of steps: a length, a text
            assert asked == 0 if name in FIXED else 0 < asked <= ranks.STEPS


def test_fsdp(tmp_path, alone):
    processes.together(ranks.sharded, str(tmp_path))
    for clips, said in ranks.read(tmp_path, "fsdp", 2):
        for name, clip in clips.items():
            assert said[name]["timeline"] == alone[name][1]
            assert torch.equal(clip, alone[name][0]), "whole parameters at every forward: the same bits"
            assert "2 ranks decide together: 0, 1" in said[name]["notes"]
    for _, seen in ranks.read(tmp_path, "seen", 2):
        assert seen == [[0, 1], []], "weights that every rank has whole are shared with nobody"


def test_the_page(tmp_path):
    text = (Path(__file__).parent.parent / "docs" / "parallel.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    processes.together(ranks.page, str(tmp_path), blocks)
    (_, first), (_, second) = ranks.read(tmp_path, "page", 2)
    assert first == second
    assert len(first) == len(blocks) == 3
    assert [len(timeline) for timeline in first] == [50] * 3
    assert "p" in first[0]


DISAGREE = {"larger": (40.0, [*EVERY[5:], "guarded"]), "no numbers": (float("nan"), EVERY[5:8])}


@pytest.mark.parametrize("kind", DISAGREE)
def test_signals_that_disagree(tmp_path, kind):
    processes.together(ranks.disagreeing, str(tmp_path), *DISAGREE[kind])
    (_, first), (_, second) = ranks.read(tmp_path, "alone", 2)
    differ = {name for name in first if first[name]["timeline"] != second[name]["timeline"]}
    assert differ == set(DISAGREE[kind][1]), "alone they part"
    for key in ("said", "shared"):
        found = ranks.read(tmp_path, key, 2)
        for name in first:
            timelines = {said[name]["timeline"] for _, said in found}
            assert timelines == {second[name]["timeline"]}, "the most cautious rank's, on all"
            clips = [clips[name] for clips, _ in found]
            assert torch.equal(*clips)
            assert any("signals differed" in note for note in found[0][1][name]["notes"])


def test_auto(tmp_path):
    processes.together(ranks.choosing, str(tmp_path))
    (clips, first), (others, second) = ranks.read(tmp_path, "auto", 2)
    for number in first:
        assert first[number]["timeline"] == second[number]["timeline"]
        assert torch.equal(clips[number], others[number])
    assert first["0"]["timeline"] == "F" * ranks.STEPS
    assert "p" in first["1"]["timeline"], "by the first rank's times, though the second has others"
    (file,) = Path(tmp_path, "learnt").glob("forecast-*[0-9a-f].json")
    assert len(json.loads(file.read_text())["samples"]) == 1, "one rank keeps it"


def test_guidance_over_ranks(tmp_path):
    processes.together(ranks.guidance, str(tmp_path))
    one, trace = ranks.by_hand(vaccel.EasyCache(threshold=0.7, warmup=2))
    (clips, said), (others, theirs) = ranks.read(tmp_path, "guidance", 2)
    assert said == theirs
    assert said["same"] == trace.timeline()
    assert "r" in said["same"]
    assert torch.equal(clips["same"], one)
    assert torch.equal(others["same"], one)
    assert said["perturbed"] == "F" * ranks.STEPS


def test_ranks_that_share_nothing_wait_for_nobody(tmp_path, alone):
    processes.together(ranks.apart, str(tmp_path))
    for clips, said in ranks.read(tmp_path, "apart", 2):
        for name, clip in clips.items():
            assert torch.equal(clip, alone[name][0])
            assert not any("decide together" in note for note in said[name]["notes"])


def test_ranks_that_are_told_to_do_different_things(tmp_path):
    processes.together(ranks.unlike, str(tmp_path))
    (_, first), (_, second) = ranks.read(tmp_path, "unlike", 2)
    assert first["methods"] == second["methods"]
    assert "begin different runs: rank 0 8 steps of" in first["methods"]
    assert "ValueError: rank 1, which shares this model, cannot begin the run: this schedule is for 9" in first["start"]
    assert second["start"].startswith("ValueError: this schedule is for 9 steps, the run has 8")
    assert first["aborted"] == second["aborted"] == "RuntimeError: on all ranks"
    assert first["same"] == second["same"], "and then they go on"
    assert "r" in first["same"]


# -- in one process --------------------------------------------------------------------------------------------------


def test_one_process_agrees_with_nobody():
    pipe = ranks.pipeline()
    assert agreement_of([pipe.transformer]) is None
    with vaccel.accelerate(pipe, ranks.METHODS["easycache"][0]) as handle:
        ranks.latents(pipe)
        assert not any("ranks" in note for note in handle.trace.notes)


def test_a_group_without_ranks_is_refused():
    pipe = ranks.pipeline()
    handle = vaccel.accelerate(pipe, ranks.METHODS["easycache"][0], process_group=object())
    with pytest.raises(ValueError, match=r"torch\.distributed is not initialised"):
        ranks.latents(pipe)
    handle.remove()
    plain = ranks.latents(pipe)
    assert torch.isfinite(plain).all(), "the pipeline is as it was"


class Mesh:
    """Eight ranks in two rows, as rank 5 sees them."""

    mesh = torch.arange(8).view(2, 4)

    def get_coordinate(self):
        return [1, 1]


def test_whose_shards():
    assert _along(Mesh(), (1,)) == {4, 5, 6, 7}
    assert _along(Mesh(), (0,)) == {1, 5}
    assert _along(Mesh(), (0, 1)) == set(range(8))
    assert shared_with(torch.nn.Linear(2, 2)) == ()


def test_values_in_lists():
    flat: list[float] = []
    _flatten([[1, 2.5], [3]], flat)
    assert flat == [1.0, 2.5, 3.0]
    assert _shaped([[0, 0], [0]], iter(flat)) == [[1.0, 2.5], [3.0]]
    assert _largest((1.0, 3.0, 2.0)) == 3.0
    assert _largest((1.0, float("nan"), 2.0)) != _largest((1.0, float("nan"), 2.0)), "no number counts before all"


@pytest.mark.parametrize("said", ["soon", "0", "-3", "nan", "inf"])
def test_a_limit_that_is_none(said, monkeypatch):
    monkeypatch.setenv("VACCEL_PARALLEL_TIMEOUT", said)
    with pytest.raises(ValueError, match="VACCEL_PARALLEL_TIMEOUT must be a number of seconds"):
        limit()
