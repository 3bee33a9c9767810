"""DualExpert: a few steps with a model distilled for each phase of the path (arXiv 2506.03123, DCM)."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, ClassVar

from ..actions import Action, Expert
from ..planning.schema import MOST_STEPS
from .base import ExpertWeights, Method, Policy, RunInfo, Step, require


@dataclasses.dataclass(frozen=True)
class DualExpert(Method):
    """Few-step sampling with two consistency-distilled experts, one above and one below a noise level.

    The steps are split evenly over both phases (of an odd number the first has one more), evenly in unshifted time
    inside each, and solved with first-order steps of the teacher's ODE, without guidance (arXiv 2506.03123, sections
    3.2 and 6).  While the method is applied, the pipeline's transformer holds the semantic expert's weights and its
    scheduler is replaced; the detail expert is the same weights with LoRA and a few layers of its own (section 3.3),
    so switching between them costs nothing.
    Whatever number of steps and guidance scale the pipeline is called with, it makes ``steps`` steps and the scale
    has no effect; where a model takes the scale as an embedding, it goes in as it is given, and should be what the
    experts were trained with.

    Args:
        folder: where the experts were saved, or their name on the hub.  Read when a pipeline is accelerated.
        steps: the number of steps of a run, 2 or more.
        merged: add the detail expert's LoRA into copies of the layers that it belongs to: steps are faster and
            those layers' bytes are needed twice; equal up to rounding.

    The device holds the transformer, once, and the detail expert's own parameters: LoRA and copied layers, or a whole
    second model where it was trained as one (``handle.expert_bytes``).  The transformer's original weights are kept in
    host memory, or, where the pipeline is on the CPU, in a temporary file of their size (Python's ``tempfile``:
    TMPDIR). Another pipeline over the same transformer uses the semantic expert's weights in the meantime.

    Raises ``ValueError`` for steps that are no integer of at least 2; ``vaccel.accelerate`` raises it for a folder that
    is missing or damaged, a transformer that the experts were not made from, a second transformer, and weights that
    cannot be replaced in place: quantised, with LoRA, offloaded by layers.
    """

    id: ClassVar[str] = "dcm"

    folder: str
    steps: int = 4
    merged: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", os.fspath(self.folder))
        good = isinstance(self.steps, int) and not isinstance(self.steps, bool) and 2 <= self.steps <= MOST_STEPS
        require(good, f"steps must be an integer of at least 2, one or more an expert, got {self.steps!r}")

    @property
    def experts(self) -> ExpertWeights:
        return ExpertWeights(self.folder, self.steps, self.merged)

    @property
    def adaptive(self) -> bool:
        return False

    def start(self, run: RunInfo) -> Policy:
        require(
            run.num_steps == self.steps,
            f"these experts make {self.steps} steps from pure noise, the run has {run.num_steps} (a pipeline that "
            "starts in the middle, by its strength?)",
        )
        return _Policy(self.steps - self.steps // 2)

    @classmethod
    def load(cls, artifact: str | os.PathLike[str], *args: Any, **overrides: Any) -> Method:
        """The same as ``DualExpert(folder, ...)``."""
        return cls(artifact, *args, **overrides)

    @classmethod
    def preset(cls, model: str, **overrides: Any) -> Method:
        """Raises ``ValueError``: experts have to be trained, by ``vaccel distill``."""
        raise ValueError(
            f"no DualExpert preset for {model!r}: experts are trained weights; `vaccel distill` makes a folder of them "
            "for DualExpert(folder)"
        )


class _Policy(Policy):
    def __init__(self, semantic: int):
        self.semantic = semantic

    def decide(self, step: Step) -> Action:
        return Expert(0 if step.index < self.semantic else 1)
