"""The backend in vLLM-Omni's own classes, over a double of vLLM; ``test_vllm_omni.py`` runs it in a process of its own.

Their pipeline, transformer, schedulers, hooks, configuration and selector are the wheel's.  The part of the pipeline's
``forward`` that encodes the prompt and decodes the clip is left out; the denoising loop is theirs.
"""

from __future__ import annotations

import gc
import importlib.metadata
import sys
import threading
import types
import weakref
from pathlib import Path

import pytest
import torch
import vllm_double

vllm_double.install()

from torch import nn  # noqa: E402
from vllm_omni import plugins  # noqa: E402
from vllm_omni.diffusion.cache import selector  # noqa: E402
from vllm_omni.diffusion.cache.base import CacheBackend  # noqa: E402
from vllm_omni.diffusion.cache.teacache import TeaCacheBackend  # noqa: E402
from vllm_omni.diffusion.data import DiffusionCacheConfig  # noqa: E402
from vllm_omni.diffusion.distributed import parallel_state  # noqa: E402
from vllm_omni.diffusion.forward_context import set_forward_context  # noqa: E402
from vllm_omni.diffusion.models.wan2_2.pipeline_wan2_2 import Wan22Pipeline, build_wan_scheduler  # noqa: E402
from vllm_omni.diffusion.models.wan2_2.wan2_2_transformer import WanTransformer3DModel  # noqa: E402

import vaccel  # noqa: E402
from vaccel.demo.family import shipped_folder  # noqa: E402
from vaccel.serving import vllm_omni as plugin  # noqa: E402

STEPS = 12
FORECAST = shipped_folder() / "forecast.json"
CONTEXT = types.SimpleNamespace(
    parallel_config=types.SimpleNamespace(sequence_parallel_size=1, ulysses_mode="strict", mask_sp_padding=False)
)


def transformer(seed: int) -> WanTransformer3DModel:
    torch.manual_seed(seed)
    made = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, text_dim=32, freq_dim=64, ffn_dim=64, num_layers=2,
        rope_max_seq_len=32,
    ).eval()  # fmt: skip
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.1)
    return made


class Tiny(Wan22Pipeline):
    """Their pipeline from the encoded prompt to the latents."""

    def __init__(self, experts: int = 1, solver: str = "unipc"):
        nn.Module.__init__(self)
        self.transformer = transformer(0)
        self.transformer_2 = transformer(1) if experts == 2 else None
        self.boundary = 600.0 if experts == 2 else None
        self.transformer_config = self.transformer.config
        self.scheduler, self._solver = build_wan_scheduler(solver, 3.0), solver
        self.expand_timesteps = self.is_dmd = False
        self._guidance_scale = None

    def forward(self, request, guidance=4.0):
        made = torch.Generator().manual_seed(request["seed"])
        rows, steps = request.get("rows", 1), request["steps"]
        x, text, other = (torch.randn(rows, *s, generator=made) for s in ((16, 2, 8, 8), (8, 32), (8, 32)))
        self._guidance_scale = guidance
        options = {"shift": 3.0} if self._solver == "unipc" else {}
        self.scheduler.set_timesteps(steps, device="cpu", **options)
        self._num_timesteps = steps
        if "fails_at" in request:
            left = [request["fails_at"]]

            def failing(module, *_):
                left[0] -= 1
                if left[0] < 0:
                    raise RuntimeError("the worker was told to stop")

            handle = self.transformer.register_forward_pre_hook(failing)
        try:
            return self.diffuse(x, self.scheduler.timesteps, text, other if guidance > 1 else None, guidance, guidance,
                                self.boundary, torch.float32, {})  # fmt: skip
        finally:
            if "fails_at" in request:
                handle.remove()


def run(pipe, backend=None, *, guidance=4.0, refresh=True, **request):
    """A request as the worker's runner makes it: refresh, then the pipeline's forward."""
    request = {"seed": 3, "steps": STEPS, **request}
    with torch.inference_mode(), set_forward_context(omni_diffusion_config=CONTEXT):
        if backend is not None and refresh and backend.is_enabled():
            backend.refresh(pipe, request["steps"])
        return pipe.forward(request, guidance=guidance).clone()


@pytest.fixture(autouse=True)
def registered():
    plugin.register()


def enabled(config, pipe=None):
    pipe = pipe or Tiny()
    backend = selector.get_cache_backend("vaccel", config)
    backend.enable(pipe)
    return pipe, backend


SCHEDULE = {"method": vaccel.Schedule(range(0, STEPS, 3), num_steps=STEPS, reuse="residual").to_json()}
FULL = {"method": vaccel.Schedule(range(STEPS), num_steps=STEPS, reuse="residual").to_json()}


# -- how it is found ---------------------------------------------------------------------------------------------------


def test_the_entry_point_is_loaded_by_their_loader(monkeypatch):
    written = Path(vaccel.__file__).parent.parent / "pyproject.toml"
    group = f'[project.entry-points."{plugins.OMNI_DEFAULT_PLUGINS_GROUP}"]'
    assert group in written.read_text()
    line = written.read_text().split(group)[1].strip().splitlines()[0]
    name, value = line.replace('"', "").split(" = ")
    point = importlib.metadata.EntryPoint(name, value, plugins.OMNI_DEFAULT_PLUGINS_GROUP)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point])
    found = plugins.load_omni_plugins_by_group(plugins.OMNI_DEFAULT_PLUGINS_GROUP)
    assert found == {"vaccel": plugin.register}


def test_one_name_more_and_every_other_as_before(monkeypatch):
    runner = types.ModuleType(plugin.RUNNER)
    monkeypatch.setitem(sys.modules, plugin.RUNNER, runner)
    monkeypatch.setattr(selector, "get_cache_backend", before := selector.get_cache_backend.known)
    runner.get_cache_backend = before  # as it stands there by ``from ... import``
    plugin.register()
    plugin.register()
    for known in (selector.get_cache_backend, runner.get_cache_backend):
        assert known.known is before
        assert isinstance(known("vaccel", {"budget": 5}), CacheBackend)
        assert isinstance(known("tea_cache", {"rel_l1_thresh": 0.2}), TeaCacheBackend)
        assert known("none", None) is None
        assert known(None, None) is None
        with pytest.raises(ValueError, match="Unsupported cache backend: Vaccel"):
            known("Vaccel", {})
    monkeypatch.setattr(selector, "get_cache_backend", before)


def test_a_host_that_has_changed_keeps_what_it_had(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "vllm_omni.diffusion.cache", None)
    plugin.register()
    assert "no cache backend of this vLLM-Omni" in caplog.text


# -- what it makes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["unipc", "euler"])
@pytest.mark.parametrize("experts", [1, 2])
def test_every_step_computed_is_their_pipeline_bit_for_bit(solver, experts):
    plain = run(Tiny(experts, solver))
    pipe, backend = enabled(FULL, Tiny(experts, solver))
    assert torch.equal(run(pipe, backend), plain)
    assert backend.handle.trace.timeline() == "F" * STEPS
    assert backend.handle.trace.calls["large"] == 2 * STEPS
    backend.remove()
    assert not backend.is_enabled()
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize("experts", [1, 2])
def test_skipped_steps_are_as_the_method_says(experts, guidance):
    """The residual's loop, written down over their pipeline."""
    pipe, kept = Tiny(experts), {}

    class Reusing(Tiny):
        def predict_noise(self, current_model=None, **kwargs):
            step = self.scheduler.step_index or 0
            key = (id(current_model), kwargs["encoder_hidden_states"].data_ptr())
            if step % 3 == 0 or key not in kept:
                out = super().predict_noise(current_model, **kwargs)
                kept[key] = out - kwargs["hidden_states"]
            return kwargs["hidden_states"] + kept[key]

    oracle = Reusing(experts)
    expected = run(oracle, guidance=guidance)
    pipe, backend = enabled(SCHEDULE, Tiny(experts))
    made = run(pipe, backend, guidance=guidance)
    # x + (v - x) for v at computed steps rounds; nothing else is between them.
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert backend.handle.trace.timeline().count("r") >= STEPS // 2
    assert not torch.equal(made, run(Tiny(experts), guidance=guidance))


def test_a_calibration_serves_any_number_of_steps():
    with pytest.raises(ValueError, match="calibrated with another"):
        enabled({"artifact": str(FORECAST), "budget": 5})
    pipe, backend = enabled({"artifact": str(FORECAST), "budget": 5, "allow_mismatch": True})
    for steps in (STEPS, 20):
        run(pipe, backend, steps=steps)
        assert backend.handle.trace.timeline().count("F") == 5
        assert len(backend.handle.trace.timeline()) == steps
        assert any("another pipeline" in note for note in backend.handle.trace.notes)


@pytest.mark.parametrize("config", [None, {}, {"psnr": 30}, {"budget": 6}, {"speedup": 2}], ids=str)
def test_without_a_calibration(config):
    pipe, backend = enabled(config)
    first, second = run(pipe, backend, steps=24), run(pipe, backend, steps=24)
    assert torch.isfinite(first).all()
    assert second.shape == first.shape
    if config in ({"budget": 6}, {"psnr": 30}):
        assert torch.equal(first, second)
        assert backend.handle.trace.timeline().count("F") < 24
    assert backend.handle.trace.finished


def test_what_they_batch_goes_together():
    pipe, backend = enabled(SCHEDULE)
    both = run(pipe, backend, rows=2)
    assert backend.handle.trace.calls["large"] == 2 * 4
    alone = run(pipe, backend)
    assert both.shape[0] == 2 * alone.shape[0]


def test_requests_have_nothing_in_common():
    pipe, backend = enabled(SCHEDULE)
    first = run(pipe, backend, seed=3)
    run(pipe, backend, seed=4)
    assert torch.equal(run(pipe, backend, seed=3), first)
    unguided = run(pipe, backend, seed=3, guidance=1.0)
    assert not torch.equal(unguided, first)
    assert torch.equal(run(pipe, backend, seed=3), first)


# -- what it refuses ---------------------------------------------------------------------------------------------------


def test_other_numbers_of_steps_than_planned(caplog):
    pipe, backend = enabled(SCHEDULE)
    assert torch.equal(run(pipe, backend, steps=8), run(Tiny(), steps=8))
    assert "a request of 8 steps is computed in full: this schedule is for 12 steps" in caplog.text
    strict, other = enabled({**SCHEDULE, "strict": True})
    with pytest.raises(ValueError, match="schedule is for 12 steps"):
        run(strict, other, steps=8)
    assert torch.isfinite(run(strict, other)).all()
    for bad in (None, "12", 1.5, True, -1):
        with pytest.raises(ValueError, match="num_inference_steps must be a whole number"):
            backend.refresh(pipe, bad)


def test_a_call_that_was_not_announced_is_plain():
    pipe, backend = enabled(SCHEDULE)
    assert torch.equal(run(pipe, backend, refresh=False), run(Tiny()))
    run(pipe, backend)
    assert torch.equal(run(pipe, backend, refresh=False), run(Tiny()))
    assert len(backend.handle.traces) == 1


class Distilled(Tiny):
    """Its timesteps are its own, and so is its solver; ``bare``: it has no scheduler to ask at all."""

    bare = False

    def diffuse(self, x, timesteps, *args):
        kept = self.scheduler
        if self.bare:
            self.scheduler = None
        try:
            return super().diffuse(x, torch.tensor([1009.0, 757.0, 522.0]), *args)
        finally:
            self.scheduler = kept

    def scheduler_step(self, noise, t, x, **_):
        return x - 0.3 * noise


def test_a_loop_that_cannot_be_followed(caplog):
    plain = run(Distilled())
    pipe, backend = enabled(SCHEDULE, Distilled())
    assert torch.equal(run(pipe, backend), plain)
    assert "could not be followed and were computed in full (Distilled)" in caplog.text
    for strict in (False, True):
        pipe, backend = enabled({**SCHEDULE, "strict": strict}, Distilled())
        pipe.bare = True
        if strict:
            with pytest.raises(ValueError, match="strict=False"):
                run(pipe, backend)
            continue
        with pytest.warns(UserWarning, match="computed in full"):
            assert torch.equal(run(pipe, backend), plain)


def test_refused_before_anything_is_touched():
    class Bare(nn.Module):
        def forward(self, x):
            return x

    for config, said in [
        ({"method": vaccel.TeaCache(0.1, (1.0, 0.0)).to_json()}, "what works on it"),
        ({"method": vaccel.DirectionMagnitude().to_json()}, "needs the small model"),
        ({"method": vaccel.DualExpert("experts").to_json()}, "experts"),
    ]:
        pipe = Tiny()
        before = dict(pipe.__dict__), type(pipe)
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            enabled(config, pipe)
        assert (dict(pipe.__dict__), type(pipe)) == before
    with pytest.raises(ValueError, match="nothing to accelerate"):
        enabled(SCHEDULE, Bare())
    pipe, backend = enabled(SCHEDULE)
    with pytest.raises(ValueError, match="serves a pipeline already"):
        backend.enable(Tiny())
    with pytest.raises(ValueError, match="accelerated already"):
        enabled(SCHEDULE, pipe)
    assert torch.isfinite(run(pipe, backend)).all()


def test_settings_of_their_other_backends():
    for config in ({"rel_l1_thresh": 0.2}, {"Fn_compute_blocks": 4, "budget": 6}, {"budget": 6, "thresh": 1}):
        with pytest.raises(ValueError, match="vaccel's cache_config"):
            selector.get_cache_backend("vaccel", config)
        with pytest.raises(ValueError, match="vaccel's cache_config"):
            selector.get_cache_backend("vaccel", DiffusionCacheConfig.from_dict(config))
    assert selector.get_cache_backend("vaccel", DiffusionCacheConfig.from_dict({"budget": 6})).settings.method


def test_ranks_with_requests_of_their_own(monkeypatch):
    """Those that share one are in ``vllm_omni_ranks.py``."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(parallel_state, "_DP", types.SimpleNamespace(world_size=2, rank_in_group=0))
    for config in ({"method": vaccel.EasyCache(0.1).to_json()}, {"speedup": 2}, {"psnr": 30}):
        with pytest.raises(ValueError, match="take artifact and budget"):
            enabled(config)
    pipe, backend = enabled({"budget": 6})
    assert torch.isfinite(run(pipe, backend, steps=24)).all()
    monkeypatch.setattr(parallel_state, "_PP", types.SimpleNamespace(world_size=2, rank_in_group=0))
    with pytest.raises(ValueError, match="pipeline parallelism"):
        enabled({"budget": 6})


# -- faults ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails_at", [0, 1, 3, 5])
def test_an_aborted_request_leaves_the_next_one_right(fails_at):
    pipe, backend = enabled(SCHEDULE)
    expected = run(pipe, backend)
    with pytest.raises(RuntimeError, match="told to stop"):
        run(pipe, backend, seed=9, fails_at=fails_at)
    assert not backend.handle.trace.finished
    assert backend.handle.nbytes == 0, "an aborted generation holds nothing"
    assert torch.equal(run(pipe, backend), expected)


def test_threads_with_a_pipeline_each():
    expected = [run(*enabled(config), seed=n) for n, config in enumerate((SCHEDULE, FULL))]
    both, made = [enabled(config) for config in (SCHEDULE, FULL)], {}

    def serve(n):
        pipe, backend = both[n]
        with torch.inference_mode():
            for again in range(2):
                backend.refresh(pipe, STEPS)
                made[n, again] = pipe.forward({"seed": n, "steps": STEPS}).clone()

    with set_forward_context(omni_diffusion_config=CONTEXT):  # one of the process, by their design
        threads = [threading.Thread(target=serve, args=(n,)) for n in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 4
    assert all(torch.equal(out, expected[n]) for (n, _), out in made.items())


def test_nothing_keeps_a_pipeline_alive():
    pipe, backend = enabled(SCHEDULE)
    run(pipe, backend)
    left = [weakref.ref(pipe), weakref.ref(pipe.transformer)]
    backend.remove()
    del pipe, backend
    gc.collect()
    assert [ref() for ref in left] == [None, None]
