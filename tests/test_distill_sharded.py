"""Training that is sharded over two processes (FSDP2, gloo): one process's curve, files for any number of processes."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import processes
import pytest
import tiny
import torch
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import PartialState
from safetensors.torch import load_file
from test_distill_training import curve, no_pictures, prepared, settings
from torch.distributed.tensor import DTensor

from vaccel.distill.stages import Samples, train
from vaccel.distill.trainer import Trainer, _check_precision, accelerator_for
from vaccel.models import find

SHARDED = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
STAGES = "semantic", "detail"
STEPS, HALF = 3, 2
#: Two processes add up the same halves of a batch as one process with two parts, and halving is exact: what is left is
#: the norm of the gradient and the means of the losses, sums of some 1e5 numbers of 2^-24 relative rounding each, in
#: another order.  Errors of that many random signs are sqrt(1e5) 2^-24 = 2e-5.
ROUNDING = 2e-5


@functools.cache
def pipeline():
    return tiny.wan_pipeline()


def run(folder: Path, name: str, stage: str, steps: int = STEPS, **options) -> None:
    """A training, in as many processes as call this; the pipeline's own transformer stays as it was."""
    pipe = pipeline()
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    with no_pictures():
        train(pipe, folder / "data", folder / name / stage, settings(stage, steps, ema=0.9), **options)
    now = pipe.transformer.state_dict()
    assert all(type(v) is torch.Tensor and torch.equal(v, before[k]) for k, v in now.items())


def in_ranks(folder: Path) -> None:
    """What both ranks do, one after the other."""
    made, seen = Trainer._prepare, []

    def watched(trainer):
        made(trainer)
        seen.append(watch(trainer))

    for stage in STAGES:
        Trainer._prepare = watched
        run(folder, "two", stage)
        Trainer._prepare = made
        run(folder, "to one", stage, HALF)
        if torch.distributed.get_rank() == 0:
            shutil.copytree(folder / "to one" / stage, folder / "stopped" / stage)
        torch.distributed.barrier()
        run(folder, "stopped", stage)
        run(folder, "from one", stage)
    (folder / f"seen by {torch.distributed.get_rank()}.json").write_text(json.dumps(seen))
    run(folder, "gpus", "detail", HALF, accelerator=as_on_gpus(), parts=2, checkpointing=True)


def as_on_gpus():
    """Accelerate with what it sets on GPUs alone: it passes FSDP over where the processes are on CPUs."""
    accelerator = accelerator_for(find(tiny.wan_transformer()))
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.distributed_type = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
    assert accelerator.is_fsdp2
    return accelerator


def watch(trainer: Trainer) -> dict:
    """Kept up to date: this rank's share of each network, and how many blocks are whole when one of them runs."""
    networks = {"student": trainer.student, "teacher": trainer.objective.teacher, "average": trainer.networks.average}
    seen = {"shares": {}, "whole": dict.fromkeys(networks, 0)}
    for name, network in networks.items():
        parameters = list(network.parameters())
        assert all(isinstance(p, DTensor) for p in parameters), name
        seen["shares"][name] = sum(p.to_local().numel() for p in parameters) / sum(p.numel() for p in parameters)

        def look(*_, name=name, blocks=network.blocks):
            whole = sum(any(not isinstance(p, DTensor) for p in block.parameters()) for block in blocks)
            seen["whole"][name] = max(seen["whole"][name], whole)

        for block in network.blocks:
            block.register_forward_pre_hook(look)
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All trainings, NAME/STAGE: "one" in one process, "two" sharded over two, others partly the one or the other."""
    folder = tmp_path_factory.mktemp("sharded")
    prepared(folder / "data")
    for stage in STAGES:
        if stage == "detail":  # all on the same semantic expert
            ignored = shutil.ignore_patterns("training")
            for name in ("one", "quarters", "two", "to one", "gpus", "bf16"):
                shutil.copytree(folder / "one" / "semantic", folder / name / "detail", ignore=ignored)
        run(folder, "one", stage, HALF, parts=2)
        shutil.copytree(folder / "one" / stage, folder / "from one" / stage)
        run(folder, "one", stage, parts=2)
    run(folder, "quarters", "detail", HALF, parts=4)
    processes.finish(*processes.ranks(in_ranks, folder, environment=SHARDED))
    for stage in STAGES:
        run(folder, "to one", stage, parts=2)
    return folder


def close(folder: Path, name: str, stage: str, to: str = "one") -> None:
    """Curves agree within rounding, and so do weights, by what the average has gone in an iteration (rate 1e-3, 0.9).

    Adam takes a step of about the rate in whatever direction: where a gradient is rounding and nothing else, it is
    another one.
    """
    curves = (curve(folder / n / stage, stage) for n in (name, to))
    for mine, theirs in zip(*curves, strict=True):
        assert mine == pytest.approx(theirs, rel=ROUNDING)
    mine, theirs = (load_file(folder / n / stage / f"{stage}.safetensors") for n in (name, to))
    assert mine.keys() == theirs.keys()
    differences = torch.cat([(mine[k] - theirs[k]).abs().flatten() for k in mine])
    assert (differences > 0.02 * 1e-3 * (1 - 0.9)).double().mean() < 1e-3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["two", "from one", "to one"])
def test_sharded_is_one_process(folder, stage, name):
    """The whole training, its second part, its first part: files are the same for any number of processes."""
    close(folder, name, stage)


@pytest.mark.parametrize("stage", STAGES)
def test_resumed_is_the_same_curve(folder, stage):
    assert curve(folder / "stopped" / stage, stage) == curve(folder / "two" / stage, stage)
    one, two = (load_file(folder / name / stage / f"{stage}.safetensors") for name in ("stopped", "two"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_what_accelerate_does_on_gpus(folder):
    """With accumulation and activations computed again."""
    close(folder, "gpus", "detail", to="quarters")


def test_no_process_holds_more_than_a_block(folder):
    """Of student, teacher and average in both stages: half of each network, and one block whole at a time."""
    for rank in (0, 1):
        for seen in json.loads((folder / f"seen by {rank}.json").read_text()):
            assert seen["whole"] == {"student": 1, "teacher": 1, "average": 1}
            assert seen["shares"] == pytest.approx(dict.fromkeys(seen["whole"], 0.5), abs=0.01)


def checkpoint_of(folder: Path, name: str, stage: str) -> dict[str, tuple]:
    path = folder / name / stage / "training" / stage / "checkpoint.safetensors"
    return {k: (v.dtype, v.shape) for k, v in load_file(path).items()}


@pytest.mark.parametrize("stage", STAGES)
def test_checkpoints_are_of_one_format(folder, stage):
    assert checkpoint_of(folder, "two", stage) == checkpoint_of(folder, "one", stage)


def in_mixed_precision(folder: Path) -> None:
    """Accelerate's precision is its process's."""
    pipeline().transformer.bfloat16()
    run(folder, "bf16", "detail", 1, accelerator=Accelerator(mixed_precision="bf16"))
    with pytest.raises(ValueError, match="train without sample prompts"):
        run(folder, "refused", "semantic", samples=Samples(("a cat",)))
    assert not (folder / "refused").exists()


def refused(match: str, kind: DistributedType = DistributedType.FSDP, **plugin) -> None:
    state = SimpleNamespace(fsdp_plugin=FullyShardedDataParallelPlugin(**plugin))
    accelerator = SimpleNamespace(distributed_type=kind, mixed_precision="no", state=state)
    with pytest.raises(ValueError, match=match):
        _check_precision(accelerator, torch.float32)


def test_mixed_precision(folder):
    """Frozen weights in bf16 and trained ones in fp32 in the same blocks; refused clips leave nothing behind."""
    processes.finish(*processes.ranks(in_mixed_precision, folder, environment=SHARDED))
    kept = checkpoint_of(folder, "bf16", "detail")
    assert {dtype for dtype, _ in kept.values()} == {torch.float32}
    mine, theirs = (curve(folder / name / "detail", "detail")[0] for name in ("bf16", "one"))
    for key in ("consistency", "adversarial", "total", "gradient"):
        assert mine[key] == pytest.approx(theirs[key], rel=0.05), key
    # Scores that are rounded to bf16 would add up to 2 exactly.
    assert mine["discriminator"] == pytest.approx(theirs["discriminator"], abs=1e-3)


def test_refusals(folder):
    refused("FSDP 1 is not supported: accelerate launch --use_fsdp --fsdp_version 2", fsdp_version=1)
    refused("leave --fsdp_offload_params out", fsdp_version=2, cpu_offload=True)
    refused("--checkpointing is vaccel's own", fsdp_version=2, activation_checkpointing=True)
    refused("DEEPSPEED is not supported", DistributedType.DEEPSPEED)
    refused("MEGATRON_LM is not supported", DistributedType.MEGATRON_LM)
