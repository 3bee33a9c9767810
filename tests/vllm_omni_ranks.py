"""vLLM-Omni's CFG-parallel ranks under the backend: two processes over gloo, a branch each, for one request.

Their groups are the wheel's ``GroupCoordinator``; their exchange of branches is its ``CFGParallelMixin``.
``test_vllm_omni.py`` runs this in a process of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import processes
import pytest
import torch
import vllm_omni_pipelines as tiny
from safetensors.torch import load_file, save_file

import vaccel

CONFIGS = {
    "full": tiny.schedule(range(tiny.STEPS)),
    "schedule": tiny.schedule(range(0, tiny.STEPS, 3)),
    "budget": {"budget": 5},
    "easycache": {"method": vaccel.EasyCache(0.4, 2).to_json()},
    "psnr": {"psnr": 30},
    "default": None,
}
KINDS = {"qwen": tiny.Qwen, "sd3": tiny.Sd3, "hunyuan": tiny.Hunyuan}


def made() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    clips, timelines = {}, {}
    for kind, pipeline in KINDS.items():
        for name, config in CONFIGS.items():
            pipe, backend = tiny.enabled(pipeline, config)
            for seed in (3, 4):
                clips[f"{kind} {name} {seed}"] = tiny.run(pipe, backend, seed=seed)
                timelines[f"{kind} {name} {seed}"] = backend.handle.trace.timeline()
    return clips, timelines


def rank(folder: str) -> None:
    from vllm_omni.diffusion.distributed import parallel_state
    from vllm_omni.diffusion.distributed.group_coordinator import GroupCoordinator
    from vllm_omni.platforms import interface

    interface.UnspecifiedOmniPlatform.get_torch_device = classmethod(lambda *_: torch.device("cpu"))
    torch.distributed.init_process_group("gloo")
    number = torch.distributed.get_rank()
    parallel_state._WORLD = GroupCoordinator([[0, 1]], number, "gloo")
    parallel_state._CFG = GroupCoordinator([[0, 1]], number, "gloo")
    clips, timelines = made()
    save_file(clips, f"{folder}/{number}.safetensors")
    Path(f"{folder}/{number}.json").write_text(json.dumps(timelines))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    processes.together(rank, str(folder), count=2)
    return [
        (load_file(folder / f"{number}.safetensors"), json.loads((folder / f"{number}.json").read_text()))
        for number in range(2)
    ]


@pytest.fixture(scope="module")
def alone():
    return made()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks(kind, name, two, alone):
    (first, said), (second, heard) = two
    clips, timelines = alone
    for seed in (3, 4):
        key = f"{kind} {name} {seed}"
        assert said[key] == heard[key]
        assert torch.equal(first[key], second[key])
        assert torch.isfinite(first[key]).all()
        if name in ("full", "schedule", "budget"):  # what was planned is what one process does, to the bit
            assert said[key] == timelines[key]
            assert torch.equal(first[key], clips[key])
        elif name == "easycache":  # both branches have a say here, one alone in one process
            assert set(said[key]) == {"F", "r"}
