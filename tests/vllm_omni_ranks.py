"""Two ranks of vLLM-Omni that share each request, under the backend: CFG-parallel and sequence-parallel, over gloo.

Groups, the exchange of branches, the splitting of tokens and Ulysses' attention are the wheel's own.
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
KINDS = {"qwen": tiny.Qwen, "sd3": tiny.Sd3, "hunyuan": tiny.Hunyuan, "z-image": tiny.ZImage}
#: What the ranks share -> the pipelines that are tried (which of them can).
WAYS = {"guidance": ("qwen", "sd3", "hunyuan"), "sequence": ("qwen", "hunyuan", "z-image")}
PLANNED = ("full", "schedule", "budget")


def made(kinds: tuple[str, ...]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    clips, timelines = {}, {}
    for kind in kinds:
        for name, config in CONFIGS.items():
            pipe, backend = tiny.enabled(KINDS[kind], config)
            for seed in (3, 4):
                clips[f"{kind} {name} {seed}"] = tiny.run(pipe, backend, seed=seed)
                timelines[f"{kind} {name} {seed}"] = backend.handle.trace.timeline()
    return clips, timelines


def rank(folder: str, way: str) -> None:
    from vllm_omni.diffusion.distributed import parallel_state
    from vllm_omni.platforms import interface

    interface.UnspecifiedOmniPlatform.get_torch_device = classmethod(lambda *_: torch.device("cpu"))
    torch.distributed.init_process_group("gloo")
    number = torch.distributed.get_rank()
    group = parallel_state.init_model_parallel_group
    parallel_state._WORLD = group([[0, 1]], number, "gloo", "data")
    if way == "guidance":
        parallel_state._CFG = group([[0, 1]], number, "gloo", "classifier_free_guidance")
    else:
        rings = dict(zip(("ulysses_group", "ring_group", "allgather_group"), parallel_state.set_seq_parallel_pg(
            2, 1, number, 2, sp_group_ranks=[[0, 1]]), strict=True))  # fmt: skip
        parallel_state._SP = group([[0, 1]], number, "gloo", "sequence", **rings)
        tiny.PARALLEL.sequence_parallel_size = tiny.PARALLEL.ulysses_degree = 2
    clips, timelines = made(WAYS[way])
    save_file(clips, f"{folder}/{number}.safetensors")
    Path(f"{folder}/{number}.json").write_text(json.dumps(timelines))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    found = {}
    for way in WAYS:
        folder = tmp_path_factory.mktemp(way)
        processes.together(rank, str(folder), way, count=2)
        found[way] = [
            (load_file(folder / f"{number}.safetensors"), json.loads((folder / f"{number}.json").read_text()))
            for number in range(2)
        ]
    return found


@pytest.fixture(scope="module")
def alone():
    return made(tuple(KINDS))


@pytest.mark.parametrize(("way", "kind"), [(way, kind) for way, kinds in WAYS.items() for kind in kinds])
@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks(way, kind, name, two, alone):
    (first, said), (second, heard) = two[way]
    clips, timelines = alone
    for seed in (3, 4):
        key = f"{kind} {name} {seed}"
        assert said[key] == heard[key]
        assert torch.equal(first[key], second[key])
        assert torch.isfinite(first[key]).all()
        if way == "sequence" and name != "default":  # whose speed may be chosen by what was measured
            assert said[key] == timelines[key]
            # Half the tokens go through each product, which may add its terms in another order.
            torch.testing.assert_close(first[key], clips[key], rtol=0, atol=2e-5)
        elif name in PLANNED:
            assert said[key] == timelines[key]
            assert torch.equal(first[key], clips[key])
        elif name == "easycache":  # both branches have a say here, one alone in one process
            assert set(said[key]) == {"F", "r"}
