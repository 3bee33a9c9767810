"""A pipeline that nobody has seen: its classes are defined here, and vaccel knows none of them."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import nn
from zoo.base import generate, load_all
from zoo.check import EverySecond, Everything

import vaccel
from vaccel.models import GENERIC, layout

STEPS = 8


@dataclasses.dataclass
class Answer:
    """What ``Denoiser`` gives: video, audio and something that is neither."""

    video: torch.Tensor
    audio: torch.Tensor
    memory: list[torch.Tensor]


class Denoiser(nn.Module):
    """Any module that takes a sample and a time."""

    def __init__(self, kind: str = "plain"):
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.mix, self.calls = kind, nn.Linear(6, 6), 0

    def forward(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor | None = None, sound: Any = None) -> Any:
        self.calls += 1
        said = 0 if text is None else text.mean()
        v = torch.tanh(self.mix(x) * (1 + t.float().mean() / 1000) + said)
        if self.kind == "plain":
            return v
        if self.kind == "variance":
            return (torch.cat([v, v * t.float().mean()], dim=1),)
        if self.kind == "tree":
            return Answer(v, torch.sin(sound * t.float().mean()), [t.clone(), torch.ones(3)])
        if self.kind == "list":
            return {"samples": [v[n] for n in range(len(v))]}
        return v.sum((1, 2))  # nothing of the sample's shape


class Pipeline:
    """A loop of its own around that."""

    def __init__(self, kind: str = "plain", **options: Any):
        self.net, self.scheduler, self.options = Denoiser(kind), FlowMatchEulerDiscreteScheduler(), options

    @torch.no_grad()
    def __call__(self, steps: int = STEPS, seed: int = 0, rows: int = 2) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        texts = [torch.randn(4, generator=generator) for _ in range(3)]
        found = []
        for _ in range(self.options.get("loops", 1)):
            found.append(self._loop(steps, torch.randn(rows, 3, 6, generator=generator), texts))
        return torch.stack(found)

    def _loop(self, steps: int, x: torch.Tensor, texts: list[torch.Tensor]) -> torch.Tensor:
        self.scheduler.set_timesteps(steps)
        order, sound = self.options.get("order", range(steps)), torch.ones(len(x), 5)
        for n in order:
            t = self.scheduler.timesteps[n]
            given = t.clone() * self.options.get("scale", 1) if self.options.get("copies") else t
            if self.options.get("noise_levels"):
                given = torch.rand(()) * 1e4
            answers = [self._ask(x, given, text, sound) for text in self._texts(n, texts)]
            v = sum(answers) / len(answers)
            if self.options.get("own_solver"):
                x = x - 0.1 * v
            else:
                x = self.scheduler.step(v, t, x, return_dict=False)[0]
        return x

    def _texts(self, step: int, texts: list[torch.Tensor]) -> list[torch.Tensor]:
        kind = self.options.get("guidance")
        if kind == "pauses":  # the unconditional call comes first, and pauses in the middle
            return texts[:2] if step not in (3, 4, 5) else texts[1:2]
        if kind == "grows":  # another call a step from the middle on
            return texts[:1] if step < 3 else texts
        return texts[:1]

    def _ask(self, x: torch.Tensor, t: torch.Tensor, text: torch.Tensor, sound: torch.Tensor) -> torch.Tensor:
        kind = self.net.kind
        if kind == "list":
            return torch.stack(self.net(x, t, text=text)["samples"])
        answer = self.net(x, t, text=text, sound=sound)
        if kind == "variance":
            assert answer[0].shape[1] == 6
            return answer[0][:, :3] + 1e-3 * answer[0][:, 3:]
        if kind == "tree":
            assert isinstance(answer, Answer)
            assert len(answer.memory) == 2
            return answer.video + answer.audio.mean() * 1e-2
        return answer


def accelerate(pipe: Pipeline, method: Any, **options: Any) -> vaccel.Handle:
    return vaccel.accelerate(pipe, method, **options)


@pytest.mark.parametrize("kind", ["plain", "variance", "tree", "list"])
def test_a_pipeline_that_was_never_seen(kind):
    pipe = Pipeline(kind)
    plain = pipe()
    with accelerate(pipe, Everything()) as handle:
        before = pipe.net.calls
        assert torch.equal(pipe(), plain)
        assert handle.trace.calls["large"] == pipe.net.calls - before == STEPS
    for residual in (False, True):
        with accelerate(pipe, EverySecond(residual)) as handle:
            before, first = pipe.net.calls, pipe()
            assert pipe.net.calls - before == handle.trace.calls["large"] == STEPS // 2
            assert not torch.equal(first, plain)
            assert torch.equal(first, pipe())
    assert torch.equal(pipe(), plain)
    assert type(pipe) is Pipeline
    assert type(pipe.net) is Denoiser


@pytest.mark.parametrize("kind", ["plain", "tree", "list"])
def test_residuals_are_of_every_tensor(kind):
    """Against the loop by hand: x + (v - x of the last computed step)."""
    pipe, kept = Pipeline(kind), {}
    own = pipe._ask

    def ask(x, t, text, sound):
        step = int((pipe.scheduler.timesteps == t).nonzero())
        if step % 2 == 0:
            answer = pipe.net(x, t, text=text, sound=sound)
            video = torch.stack(answer["samples"]) if kind == "list" else answer.video if kind == "tree" else answer
            kept["video"], kept["audio"] = video - x, answer.audio - sound if kind == "tree" else None
            return own(x, t, text, sound)
        if kind == "tree":
            return x + kept["video"] + (sound + kept["audio"]).mean() * 1e-2
        return x + kept["video"]

    pipe._ask = ask
    want = pipe()
    del pipe._ask
    with accelerate(pipe, EverySecond(True)):
        torch.testing.assert_close(pipe(), want, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("options", "letters"),
    [
        ({"copies": True}, "FoFoFoFo"),
        ({"copies": True, "scale": 1e-3}, "FoFoFoFo"),
        ({"copies": True, "own_solver": True}, "FoFoFoFo"),
        ({"copies": True, "scale": 1e-3, "own_solver": True}, "FoFoFoFo"),
    ],
)
def test_a_step_is_located_where_the_address_is_lost(options, letters):
    pipe = Pipeline(**options)
    with accelerate(pipe, EverySecond()) as handle:
        pipe()
        assert handle.trace.timeline() == letters
        pipe()
        assert handle.trace.timeline() == letters


def test_loops_of_one_call_are_runs_of_their_own():
    pipe = Pipeline(loops=3)
    with accelerate(pipe, EverySecond()) as handle:
        found = pipe()
        assert [t.timeline() for t in handle.traces] == ["FoFoFoFo"] * 3
        assert all(t.finished for t in handle.traces)
    alone = Pipeline(loops=1)
    with accelerate(alone, EverySecond()):
        assert torch.equal(alone()[0], found[0])


def test_a_branch_that_pauses_is_told_from_the_other_one():
    """Where the first call of a step is left out for a while, the second one is not taken for it."""
    pipe = Pipeline(guidance="pauses")
    with accelerate(pipe, EverySecond()) as handle:
        pipe()
        large = [(step.large, step.reason) for step in handle.trace.steps]
    assert large[0][0] == large[2][0] == 2
    assert large[1][0] == 0
    assert large[3] == (1, "computed in full: no large.last cached for this model yet")  # nothing of it is of this text


def test_calls_that_come_later_are_computed_first():
    pipe = Pipeline(guidance="grows")
    with accelerate(pipe, EverySecond()) as handle:
        pipe()
    assert [step.large for step in handle.trace.steps] == [1, 0, 1, 2, 3, 0, 3, 0]
    assert "branch 2 computed in full" in handle.trace.steps[3].reason


def test_an_answer_of_another_shape():
    pipe = Pipeline("sum")
    said = r"answers with \[\(2,\)\], and none of that has the shape"
    with accelerate(pipe, EverySecond()), pytest.raises(ValueError, match=said):
        pipe()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"order": (0, 2, 1, 3)}, "out of order: step 2 of 8 came after step 0"),
        ({"noise_levels": True, "own_solver": True}, "could not be located"),
    ],
)
def test_what_cannot_be_followed(options, said):
    pipe = Pipeline(**options)
    pipe.scheduler.__class__ = Silent if "noise_levels" in options else type(pipe.scheduler)
    torch.manual_seed(3)
    plain = pipe()
    with accelerate(pipe, EverySecond()), pytest.raises(ValueError, match=said):
        pipe()
    with accelerate(pipe, EverySecond(), strict=False) as handle:
        torch.manual_seed(3)
        with pytest.warns(UserWarning, match=said):
            found = pipe()
        assert any("computed in full" in note for note in handle.trace.notes)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            pipe()
    if "noise_levels" in options:
        assert torch.equal(found, plain)


class Silent(FlowMatchEulerDiscreteScheduler):
    """Says nothing of the step it is at."""

    step_index = property(lambda self: (_ for _ in ()).throw(AttributeError("step_index")))


def test_block_level_methods_say_what_works():
    pipe = Pipeline()
    for method in (
        vaccel.TeaCache(coefficients=(1.0, 0.0)),
        vaccel.Schedule([0, 2], num_steps=STEPS, reuse="blocks"),
        vaccel.LeMiCa((0, 3, 7), STEPS),
        vaccel.MixCache(levels=("block",)),
    ):
        with pytest.raises(ValueError, match="what works on it: Auto, Forecast, EasyCache"):
            accelerate(pipe, method)
    with accelerate(pipe, vaccel.Schedule([0, 2, 5], num_steps=STEPS)) as handle:
        pipe()
        assert handle.trace.timeline() == "FrFrrFrr"
        assert "seen from outside" in handle.trace.notes[0]
    with accelerate(pipe, vaccel.MixCache(theta=10.0, d1=10.0, d2=20.0)) as handle:
        pipe()
        assert "o" in handle.trace.timeline()


def test_a_wrong_family():
    with pytest.raises(ValueError, match="family 'wan' describes WanTransformer3DModel, and this is a Denoiser"):
        accelerate(Pipeline(), EverySecond(), family="wan")
    with accelerate(Pipeline(), EverySecond(), family="generic") as handle:
        assert handle.family.name == "generic"


def test_a_small_model_by_name():
    pipe, small = Pipeline(), Denoiser()
    with torch.no_grad():
        small.mix.weight.mul_(0.9)
    method = vaccel.DirectionMagnitude(threshold=1e6, first=0.3, last=0.9)
    with pytest.raises(ValueError, match=r"must name net, got unet"):
        accelerate(pipe, method, small={"unet": small})
    with accelerate(pipe, method, small={"net": small}) as handle:
        assert torch.isfinite(pipe()).all()
        assert handle.trace.timeline() == "FFFmmmms"


def test_the_steps_may_change_between_calls():
    pipe = Pipeline()
    with accelerate(pipe, EverySecond()) as handle:
        for steps in (8, 3, 5):
            pipe(steps)
            assert len(handle.trace.steps) == steps


@pytest.mark.parametrize("rows", [1, 3])
def test_structures_are_taken_apart_and_put_together(rows):
    """Two tensors of other shapes, in a dict in a tuple, with something beside them."""
    inputs = {"hidden_states": torch.randn(rows, 4, 3), "audio_hidden_states": torch.randn(rows, 2)}
    answer = ({"v": torch.randn(rows, 4, 3), "n": 3, "a": torch.randn(rows, 2)}, torch.randn(7))
    found = layout.found(inputs, answer)
    packed = found.pack(answer, inputs)
    assert packed.shape == found.x(inputs).shape == (rows, 1, 14)
    again = found.unpack(packed, found.take_rest())
    assert again[0]["n"] == 3
    for name in ("v", "a"):
        assert torch.equal(again[0][name], answer[0][name])
    assert torch.equal(again[1], answer[1])


def test_a_forward_that_only_looks_is_counted():
    """The first step takes the small model, and the large one was asked once what its answers look like."""
    pipe, small = Pipeline(), Denoiser()
    with accelerate(pipe, vaccel.Schedule.from_timeline("sFoFoFos"), small=small) as handle:
        before = pipe.net.calls
        pipe()
        assert (
            handle.trace.calls == {"large": pipe.net.calls - before, "small": small.calls} == {"large": 4, "small": 2}
        )
        assert handle.trace.steps[0].reason == "one forward to see what the model answers with"


def test_the_kind_of_answer_may_change_between_calls(wan):
    """A transformer that was asked for tuples is asked for its dataclass."""
    wan.scheduler.set_timesteps(4)
    given = {"hidden_states": torch.randn(1, 16, 3, 4, 4), "encoder_hidden_states": torch.randn(1, 8, 32)}
    with accelerate(wan, EverySecond()) as handle, torch.no_grad():
        for asked in (False, True, False):
            with handle.run(4):
                for t in wan.scheduler.timesteps:
                    answer = wan.transformer(**given, timestep=t.expand(1), return_dict=asked)
                    assert isinstance(answer[0], torch.Tensor)
                    assert hasattr(answer, "sample") is asked


def test_true_guidance_goes_before_the_embedded_number():
    from types import SimpleNamespace

    pipe = SimpleNamespace(_guidance_scale=3.5)
    assert GENERIC.guidance(pipe, 0, {"true_cfg_scale": 4.0, "guidance_scale": 3.5}) == 4.0
    assert GENERIC.guidance(pipe, 0, {"guidance_scale": 7.0}) == 3.5
    assert GENERIC.guidance(SimpleNamespace(), 0, {"guidance_scale": 7.0}) == 7.0


def test_a_pipeline_within_has_a_scheduler_of_its_own():
    """To replace that of a combined pipeline leaves the one that the loop goes by as it was."""
    case = load_all()["KandinskyV22CombinedPipeline"]
    pipe = case.build()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    plain = generate(case, pipe)
    with vaccel.accelerate(pipe, Everything()) as handle:
        assert all(torch.equal(a, b) for a, b in zip(generate(case, pipe), plain, strict=True))
        assert len(handle.trace.steps) == handle.trace.num_steps == 6


def test_what_a_family_does_not_say():
    from vaccel.models import FAMILIES

    with pytest.raises(ValueError, match="'flux' does not say how clips are encoded"):
        FAMILIES["flux"].encode(None, None)
    with pytest.raises(ValueError, match="noisy shows only once it has answered"):
        GENERIC.latents(Denoiser(), {})


@pytest.mark.parametrize("make", [tiny.wan_pipeline, tiny.qwen_pipeline, tiny.cog_pipeline])
def test_a_loop_is_located_once_and_then_followed(make, monkeypatch):
    """By the address of the timestep, or of the pipeline's own where it converts that first."""
    from vaccel.integrations.diffusers.locating import Locator

    pipe, asked, find = make(), [], Locator.find
    monkeypatch.setattr(Locator, "find", lambda *args, **kwargs: asked.append(1) or find(*args, **kwargs))
    with accelerate(pipe, EverySecond()) as handle:
        tiny.latents(pipe, steps=6)
        assert handle.trace.timeline() == "FoFoFo"
    assert len(asked) == 1


def test_an_answer_of_other_rows_is_no_prediction():
    """As of one sample with two prompts; what else has the answer's shape was no noisy input either."""
    sample, residual = torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 8, 8)
    inputs = {"sample": sample, "timestep": torch.tensor(1.0), "down_block_additional_residuals": (residual,)}
    assert layout.found(inputs, (torch.zeros(2, 4, 8, 8),)) is None
    made = layout.found(inputs, (torch.zeros(1, 4, 8, 8),))
    assert made.kind == "single"
    assert made.parts[0].argument == "sample"
