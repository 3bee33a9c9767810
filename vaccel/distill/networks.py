"""The networks of a stage: teacher, student, target, discriminator; which parameters are trained and saved."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ..experts.trees import Adapter, adapted, own_parameters
from ..models import Family
from . import sharding
from .discriminator import Discriminator
from .settings import Distillation


class Networks(nn.Module):
    """The networks of a stage; trained weights are in fp32 at least, whatever the teacher's dtype.

    Attributes:
        student: computes with the parameters that are trained.
        average: the student's moving average, or None.
        heads: the discriminator, or None.
        adapter: the LoRA and own layers of a detail expert that shares the semantic one's weights, or None.

    Args:
        apart: give the moving average frozen weights of its own, equal to the student's; one parameter cannot be
            sharded as part of two networks.
    """

    def __init__(
        self, settings: Distillation, family: Family, teacher: nn.Module, semantic: Path | None, *, apart: bool = False
    ):
        super().__init__()
        self.apart = apart
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            self._build(settings, family, teacher, semantic)

    def _build(self, settings: Distillation, family: Family, teacher: nn.Module, semantic: Path | None) -> None:
        self.settings, self.adapter = settings, None
        teacher.requires_grad_(False)
        if settings.stage == "detail" and settings.sharing == "lora":
            base = copy.deepcopy(teacher)
            if semantic is not None:
                base.load_state_dict(load_file(semantic))
            self.adapter = Adapter(settings.rank, settings.alpha, family.attention_targets, family.fresh)
            self.student = adapted(base, self.adapter)
            average = adapted(copy.deepcopy(base) if self.apart else base, self.adapter) if settings.ema else None
        else:
            self.student = copy.deepcopy(teacher).requires_grad_(True)
            average = copy.deepcopy(self.student) if settings.ema else None
        self.average = average
        for network in (self.student, average):
            if network is not None:  # small steps would vanish in a half-precision weight
                for p in self.trained(network).values():
                    p.data = p.data.float() if p.element_size() < 4 else p.data
        self.heads = None
        if settings.discriminates:
            blocks = family.block_list(teacher)
            channels = family.width(teacher)
            self.heads = Discriminator(
                channels, len(blocks), width=settings.head_width, stride=settings.head_stride
            ).to(next(teacher.parameters()).device)
        self._followed: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        if average is not None:
            self._follow()
            self.update_average(0.0)

    def _follow(self) -> None:
        theirs, ours = self.trained(self.average), self.trained()
        self._followed = [p.requires_grad_(False) for p in theirs.values()], [ours[name] for name in theirs]

    def shard(self, family: Family, mesh: DeviceMesh) -> None:
        """Shards student and moving average, whose parameters are others afterwards; see ``sharding.shard``."""
        sharding.shard(self.student, family, mesh)
        if self.average is not None:
            sharding.shard(self.average, family, mesh)
            self._follow()

    @property
    def target(self) -> nn.Module:
        """The network of the other end (eq. 4): the student, or its moving average."""
        return self.student if self.average is None else self.average

    def trained(self, network: nn.Module | None = None) -> dict[str, nn.Parameter]:
        """The trained parameters (of the moving average, if asked), by the names they are saved under."""
        network = self.student if network is None else network
        return dict(network.named_parameters()) if self.adapter is None else own_parameters(network, self.adapter)

    @property
    def result(self) -> dict[str, torch.Tensor]:
        """The weights to save: the moving average where there is one."""
        return self.target.state_dict() if self.adapter is None else self.trained(self.target)

    @torch.no_grad()
    def update_average(self, decay: float) -> None:
        """average = decay average + (1 - decay) student."""
        theirs, ours = ([sharding.local(p) for p in side] for side in self._followed)
        torch._foreach_lerp_(theirs, ours, 1 - decay)
