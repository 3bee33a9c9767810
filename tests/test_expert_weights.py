"""The experts' weights in a transformer's place: put back bit for bit, refused where they cannot be, saved whole."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path

import accelerate as hf_accelerate
import pytest
import test_graphs
import tiny
import torch
from diffusers.hooks import apply_group_offloading
from made_experts import (
    BOUNDARY,
    FAMILIES,
    FRESH,
    MAKE,
    assert_given_back,
    fingerprint,
    folder,
    kept,
    loop,
    make,
    parked,
    parking,
    pipe,
    pipeline,
)
from safetensors.torch import load_file, save_file

import vaccel
from vaccel.experts import files as expert_files
from vaccel.experts import weights as expert_weights
from vaccel.experts.files import read_experts, save_experts
from vaccel.experts.trees import Adapter
from vaccel.planning import artifacts
from vaccel.planning.trajectory import Trajectory

__all__ = ["folder", "parking", "pipe"]  # fixtures

# -- what is put in place, and back ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_remove_gives_everything_back(name, tmp_path, parking):
    pipe, folder = pipeline(name), make(tmp_path / "experts", name)
    for i, p in enumerate(pipe.transformer.parameters()):
        p.requires_grad_(i % 2 == 0)
    plain, before, state = tiny.latents(pipe, steps=6), kept(pipe), torch.get_rng_state()
    for _ in range(2):
        handle = vaccel.accelerate(pipe, vaccel.DualExpert(folder))
        assert parked(parking) == 1
        first = tiny.latents(pipe, steps=4)
        assert torch.equal(tiny.latents(pipe, steps=4), first)
        during = fingerprint(pipe)
        assert {k: during[k] for k in ("pointers", "grads", "registers", "config")} == {
            k: before[0][k] for k in ("pointers", "grads", "registers", "config")
        }
        handle.remove()
        handle.remove()
        assert_given_back(pipe, before)
        assert parked(parking) == 0
        assert torch.equal(tiny.latents(pipe, steps=6), plain)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_aborted_run_leaves_nothing_behind(error, pipe, folder):
    def abort(pipe, i, t, kwargs):
        if i == 2:
            raise error("stop")
        return kwargs

    before = kept(pipe)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)) as handle:
        expected = tiny.latents(pipe)
        with pytest.raises(error, match="stop"):
            tiny.latents(pipe, callback_on_step_end=abort)
        assert handle.trace.timeline() == "eee"
        assert torch.equal(tiny.latents(pipe), expected)
    with pytest.raises(error), vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        tiny.latents(pipe, callback_on_step_end=abort)
    assert_given_back(pipe, before)


@pytest.mark.parametrize("where", ["fill", "park", "merge", "attention"])
def test_a_failed_accelerate_leaves_nothing_behind(where, pipe, folder, monkeypatch, parking):
    before = kept(pipe)
    arguments = {}
    if where == "fill":
        fill = expert_files.WeightFile.fill

        def half(self, tensors):
            if self.path.name == "semantic.safetensors":
                fill(self, dict(list(tensors.items())[:9]))
                raise KeyboardInterrupt
            fill(self, tensors)

        monkeypatch.setattr(expert_files.WeightFile, "fill", half)
    elif where == "park":
        monkeypatch.setattr(expert_weights, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "disk full")))
    elif where == "merge":
        monkeypatch.setattr(expert_weights, "merged", lambda tree: (_ for _ in ()).throw(MemoryError))
    else:
        arguments["attention"] = "no such kernel"
    with pytest.raises((KeyboardInterrupt, OSError, MemoryError, ValueError)):
        vaccel.accelerate(pipe, vaccel.DualExpert(folder, merged=True), **arguments)
    assert_given_back(pipe, before)
    assert parked(parking) == 0
    monkeypatch.undo()
    vaccel.accelerate(pipe, vaccel.DualExpert(folder)).remove()


def test_the_parked_file_goes_with_its_pipeline(pipe, folder, parking):
    vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    tiny.latents(pipe)
    assert parked(parking) == 1
    del pipe
    gc.collect()
    # The fixture still holds the pipeline; a handle of one that nobody holds:
    other = pipeline("wan")
    vaccel.accelerate(other, vaccel.DualExpert(folder))
    assert parked(parking) == 2
    del other
    gc.collect()
    assert parked(parking) == 1


def test_no_weight_is_there_twice(pipe, folder):
    base = {p.untyped_storage().data_ptr() for p in pipe.transformer.parameters()}
    size = sum(p.nbytes for p in pipe.transformer.parameters())
    handle = vaccel.accelerate(pipe, vaccel.DualExpert(folder))
    models = handle._session.experts.models
    assert models[0].model is pipe.transformer
    found = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in models for p in m.model.parameters()}
    assert base <= found.keys()
    saved = load_file(folder / "detail.safetensors").values()
    assert sum(found.values()) - size == sum(t.nbytes for t in saved) == handle.expert_bytes["detail"]
    assert handle.expert_bytes["parked"] == size
    assert handle.memory_plan(height=32, width=32, num_frames=9, num_inference_steps=4) == {"total": 0}
    tiny.latents(pipe)
    assert handle.nbytes == 0
    assert not any(p.requires_grad for p in models[1].model.parameters() if p.untyped_storage().data_ptr() not in base)
    handle.remove()


def test_in_bfloat16(folder):
    pipe = pipeline("wan")
    pipe.transformer.to(torch.bfloat16)
    before = kept(pipe)
    x, expected = loop(pipeline("wan"), folder, "wan", ["a red cat runs"])
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)) as handle:
        assert {p.dtype for m in handle._session.experts.models for p in m.model.parameters()} == {torch.bfloat16}
        found = tiny.latents(pipe, latents=x)
        assert found.dtype == torch.float32
        assert torch.linalg.vector_norm(found - expected) < 0.05 * torch.linalg.vector_norm(expected)
    assert_given_back(pipe, before)


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(pipe, method, match: str) -> None:
    before = kept(pipe)
    with pytest.raises(ValueError, match=match):
        vaccel.accelerate(pipe, method)
    assert_given_back(pipe, before)


def test_another_base_is_refused(folder, tmp_path):
    method = vaccel.DualExpert(folder)
    other = tiny.wan_pipeline(transformer=tiny.wan_transformer(layers=3))
    refused(other, method, r"made from a WanTransformer3DModel \(configuration \w+\), tiny; the pipeline's")
    refused(tiny.cog_pipeline(), method, "the pipeline's transformer is a CogVideoXTransformer3DModel")
    refused(
        tiny.wan_pipeline(transformer=MAKE["wan"](9)), method, "made from other weights .*than this Wan.*: load the"
    )
    changed = pipeline("wan")
    with torch.no_grad():
        changed.transformer.blocks[1].ffn.net[2].bias[3] += 1e-3
    refused(changed, method, "made from other weights")
    two = tiny.wan_pipeline(transformer_2=tiny.wan_transformer(9), boundary_ratio=0.7)
    refused(two, method, "has transformer and transformer_2")


def test_experts_of_earlier_versions_say_nothing_of_weights(folder):
    described = json.loads((folder / "dual_expert.json").read_text())
    del described["weights"], described["digest"]
    artifacts.write(folder / "dual_expert.json", described)
    assert read_experts(folder).weights is None
    vaccel.accelerate(tiny.wan_pipeline(transformer=MAKE["wan"](9)), vaccel.DualExpert(folder)).remove()
    whole = {"weights": "0", "adapters": "none", "storage": "float32"}
    for odd, said in ((3, "must be an object"), ({"weights": "0"}, "adapters is missing"),
                      ({**whole, "storage": None}, "storage must be a string")):  # fmt: skip
        artifacts.write(folder / "dual_expert.json", {**described, "weights": odd})
        with pytest.raises(ValueError, match=rf"dual_expert\.json: weights.*{said}"):
            read_experts(folder)


def test_damaged_folders_are_refused(pipe, folder, tmp_path):
    method, described = vaccel.DualExpert(folder), folder / "dual_expert.json"
    text = described.read_text()
    for damage, match in (
        (text[: len(text) // 2], "cut short"),
        (text.replace("0.76", "0.66"), "changed after"),
        (None, "has no dual_expert.json"),
    ):
        described.unlink()
        if damage is not None:
            described.write_text(damage)
            refused(pipe, method, match)
        else:
            refused(pipe, method, match)
            described.write_text(text)
    for name in ("semantic.safetensors", "detail.safetensors"):
        path = folder / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        refused(pipe, method, "cut short")
        save_file({**load_file_bytes(whole), "one.more": torch.zeros(1)}, path)
        refused(pipe, method, r"one\.more")
        save_file({k: t.repeat(2) if t.ndim == 1 else t for k, t in load_file_bytes(whole).items()}, path)
        refused(pipe, method, r"is \[")
        path.unlink()
        refused(pipe, method, f"has no {name}")
        path.write_bytes(whole)
    vaccel.accelerate(pipe, method).remove()


def load_file_bytes(content: bytes) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(content)


def test_a_name_on_the_hub(pipe, folder, monkeypatch):
    import huggingface_hub

    asked = []

    def found(name, **options):
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    vaccel.accelerate(pipe, vaccel.DualExpert("someone/experts")).remove()
    assert asked == ["someone/experts"]

    def offline(name, **options):
        raise ConnectionError("no network here\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    refused(pipe, vaccel.DualExpert("someone/experts"), "no folder someone/experts, .*: no network here")


def test_weights_that_cannot_be_replaced_are_refused(folder):
    method = vaccel.DualExpert(folder)
    pipe = pipeline("wan")
    test_graphs.lora(pipe)
    refused(pipe, method, "has a LoRA")
    pipe = pipeline("wan")
    hf_accelerate.cpu_offload(pipe.transformer, execution_device="cpu")
    with pytest.raises(ValueError, match="offloaded by layers"):
        vaccel.accelerate(pipe, method)
    pipe = pipeline("wan")
    _groups(pipe.transformer)
    with pytest.raises(ValueError, match="carries hooks"):
        vaccel.accelerate(pipe, method)
    for dtype in (torch.float8_e4m3fn, torch.int8):
        pipe = pipeline("wan")
        weight = pipe.transformer.blocks[0].ffn.net[2].weight
        pipe.transformer.blocks[0].ffn.net[2].weight = torch.nn.Parameter(weight.data.to(dtype), requires_grad=False)
        refused(pipe, method, "is quantised")
    pipe = pipeline("wan")
    pipe.transformer.proj_out.to("meta")
    with pytest.raises(ValueError, match="meta device"):
        vaccel.accelerate(pipe, method)
    pipe = pipeline("wan")
    pipe.transformer.blocks[1].forward = lambda *args, **kwargs: args[0]
    refused(pipe, method, r"forward of its blocks\.1 was replaced")


def _groups(model):
    cpu = torch.device("cpu")
    apply_group_offloading(
        model, onload_device=cpu, offload_device=cpu, offload_type="block_level", num_blocks_per_group=1
    )


def test_what_comes_upon_the_transformer_later_is_refused_at_the_next_run(pipe, folder):
    before = kept(pipe)
    with vaccel.accelerate(pipe, vaccel.DualExpert(folder)):
        tiny.latents(pipe)
        own, pipe.scheduler = pipe.scheduler, tiny.unipc()
        with pytest.raises(ValueError, match="scheduler was replaced"):
            tiny.latents(pipe, steps=4)
        object.__setattr__(pipe, "scheduler", own)
        test_graphs.lora(pipe)
        with pytest.raises(ValueError, match=r"cannot run any more: .*LoRA"):
            tiny.latents(pipe)
    weights = {n.replace(".base_layer.", "."): p for n, p in pipe.transformer.named_parameters()}
    assert all(torch.equal(weights[n], t) for n, t in before[1].items() if n in weights)


def test_no_pipeline_no_weights(folder, small):
    wan = pipeline("wan")
    with pytest.raises(ValueError, match="needs a pipeline"):
        vaccel.Denoiser(wan.transformer, method=vaccel.DualExpert(folder))
    with vaccel.accelerate(wan, vaccel.DualExpert(folder)) as handle:
        tiny.latents(wan)
        with pytest.raises(ValueError, match="accelerated already"):
            vaccel.accelerate(wan, vaccel.DualExpert(folder))
        schedule = handle.trace.as_schedule()
    assert schedule.timeline == "eeee"
    assert vaccel.method_from_json(schedule.to_json()) == schedule
    for replayed in (schedule, vaccel.Schedule.from_timeline("eeee")):
        refused(wan, replayed, "whose weights no schedule has")
        with pytest.raises(ValueError, match="whose weights no schedule has"):
            vaccel.Denoiser(wan.transformer, method=replayed)
    with pytest.warns(UserWarning, match="ignored"):
        vaccel.accelerate(wan, vaccel.DualExpert(folder), small=small).remove()


# -- saving ------------------------------------------------------------------------------------------------------------


def test_loaded_is_the_folder():
    assert vaccel.DualExpert.load(Path("some") / "folder", steps=6) == vaccel.DualExpert("some/folder", steps=6)


def test_files_are_readable_as_any_other(tmp_path):
    before = os.umask(0o027)
    try:
        folder = make(tmp_path)
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for p in folder.iterdir()} == {"0o640"}


def test_tensors_that_share_memory_are_saved_as_they_are(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"whole": whole, "turned": whole.T, "row": whole[1]}
    (tmp_path / "t.safetensors.partial").write_text("left behind")
    artifacts.save_tensors(tmp_path / "t.safetensors", tensors, {"step": "3"})
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    assert all(torch.equal(t, tensors[k]) for k, t in load_file(tmp_path / "t.safetensors").items())


def test_an_interrupted_save_leaves_no_half(tmp_path, monkeypatch):
    folder = make(tmp_path)
    saved = read_experts(folder)
    assert (saved.base, saved.kind, saved.semantic, saved.boundary) == ("tiny", "lora", True, BOUNDARY)
    assert saved.adapter == Adapter(rank=4, alpha=8, fresh=FRESH["wan"])
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert set(before) == {"dual_expert.json", "semantic.safetensors", "detail.safetensors"}

    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(expert_files.artifacts, "save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            make(tmp_path, kind="full")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    with monkeypatch.context() as patch:
        patch.setattr(expert_files.artifacts, "write", fail)
        with pytest.raises(OSError, match="disk full"):
            make(tmp_path, kind="full")
    with pytest.raises(ValueError, match=r"has no dual_expert\.json"):
        read_experts(folder)
    make(tmp_path, kind="none", semantic=False)
    assert [p.name for p in folder.iterdir()] == ["dual_expert.json"]


def test_saving_refuses_what_could_not_be_run(tmp_path, wan):
    given = {"trajectory": Trajectory(), "boundary": 0.5}
    with pytest.raises(ValueError, match="between 0 and 1"):
        save_experts(tmp_path, wan.transformer, **{**given, "boundary": 1.0})
    with pytest.raises(ValueError, match="no parameters of it"):
        save_experts(tmp_path, wan.transformer, adapter=Adapter(), **given)
    tied = torch.zeros(2, 3)
    save_experts(tmp_path, wan.transformer, semantic={"a": tied, "b": tied.t()}, **given)
    assert load_file(tmp_path / "semantic.safetensors")["b"].shape == (3, 2)
