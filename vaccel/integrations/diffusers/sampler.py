"""The experts' own sampling as a diffusers scheduler: fixed times, first-order steps, whatever a pipeline asks for."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from ...planning.trajectory import Level, Trajectory, expert_times


class ExpertScheduler(SchedulerMixin, ConfigMixin):
    """Replaces the pipeline's scheduler: ``steps`` deterministic solver steps on the experts' path (arXiv 2506.03123).

    Args:
        trajectory: the teacher's path.
        boundary: the unshifted time, in (0, 1), where the detail expert takes over.
        steps: how many steps it makes; how many it is asked for changes nothing.
        base: the scheduler it replaces, whose configuration it shows, as pipelines look things up there.

    Attributes:
        timesteps: [steps], fp32, on the device asked for; a new tensor for every run.
        sigmas: [steps + 1], fp32, on the CPU, the last 0.
        asked: how many steps the last run asked for.

    Raises ``ValueError`` for fewer than 2 steps or a boundary outside (0, 1).
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, trajectory: Trajectory, boundary: float, steps: int, base: Any):
        self._internal_dict = base.config
        self.trajectory, self.times = trajectory, (*expert_times(steps, boundary), 0.0)
        self.asked = steps
        self.set_timesteps()

    def __len__(self) -> int:
        return self.trajectory.num_train_timesteps

    @property
    def step_index(self) -> int:
        return self._index

    @property
    def begin_index(self) -> int:
        return self._begin

    def set_begin_index(self, begin_index: int = 0) -> None:
        self._index = self._begin = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Any = None,
        sigmas: Any = None,
        mu: float | None = None,
        **ignored: Any,
    ) -> None:
        """Begins a run on ``device``.  Everything else is what pipelines give their schedulers, and is not heeded."""
        given = timesteps if timesteps is not None else sigmas
        self.num_inference_steps = len(self.times) - 1
        self.asked = len(given) if given is not None else num_inference_steps or self.num_inference_steps
        level = self.trajectory.level(self.times)
        self.sigmas = level.sigma.float()
        self.timesteps = level.timestep[:-1].to(device, torch.float32, copy=True)
        # On the device already: a copy from the host in every step would wait for it.
        self._levels = Level(*(value.to(device) for value in level))
        self.set_begin_index(0)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        return_dict: bool = True,
        **ignored: Any,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Phi(sample, model_output) from this step's time to the next one's, [B, ...], in ``sample``'s dtype.

        Computed in fp32 or more.  Steps come in order.  Raises ``ValueError`` for one beyond the last.
        """
        if self._index >= self.num_inference_steps:
            raise ValueError(f"all {self.num_inference_steps} steps are made: call set_timesteps for another run")
        start, end = self._level(self._index), self._level(self._index + 1)
        dtype = torch.promote_types(sample.dtype, torch.float32)
        previous = self.trajectory.solve(sample.to(dtype), model_output.to(dtype), start, end).to(sample.dtype)
        self._index += 1
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """a x_0 + s noise [B, ...] at ``timesteps`` [B] or [1], each one of the run's."""
        own = self.timesteps.to(clean.device)
        at = (own[None] - timesteps.to(clean.device, own.dtype).view(-1, 1)).abs().argmin(1)
        return self.trajectory.noised(clean, noise, Level(*(value.to(clean.device)[at] for value in self._levels)))

    def _level(self, index: int) -> Level:
        return Level(*(value[index : index + 1] for value in self._levels))
