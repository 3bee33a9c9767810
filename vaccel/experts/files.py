"""Distilled experts as a folder: ``dual_expert.json``, sealed, and their weights beside it as safetensors."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..models.fingerprints import of_model
from ..models.weights_digest import identity
from ..planning import artifacts
from ..planning.files import temporary
from ..planning.trajectory import Trajectory
from .trees import Adapter

METHOD = "dcm"
DESCRIPTION, SEMANTIC, DETAIL = "dual_expert.json", "semantic.safetensors", "detail.safetensors"


@dataclasses.dataclass(frozen=True)
class SavedExperts:
    """The description of a folder of experts.

    Attributes:
        folder: its path.
        base: the name of the model that the experts were made from.
        model: that model's fingerprint.
        trajectory: the teacher's path.
        boundary: the unshifted time, in (0, 1), where the detail expert takes over.
        semantic: whether the semantic expert has its own weights; without, it is the base model.
        kind: the detail expert: "lora" (with ``adapter``), "full", or "none": one model for all steps.
        training: the settings of each stage, plain data.
        weights: what tells that model's weights apart (``vaccel.models.weights_digest.identity``); None of experts
            that were saved by an earlier version.
    """

    folder: Path
    base: str
    model: dict[str, str]
    trajectory: Trajectory
    boundary: float
    semantic: bool
    kind: str
    adapter: Adapter | None = None
    training: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: Mapping[str, str] | None = None

    def refuse_other_models(self, model: nn.Module) -> None:
        """Raises ``ValueError`` for a model of another class or configuration than the one they were made from."""
        made, here = self.model, of_model(model)
        if made != here:
            of, is_a = (f"{m['class']} (configuration {m['config']})" for m in (made, here))
            base = f", {self.base}" if self.base else ""
            raise ValueError(
                f"the experts in {self.folder} were made from a {of}{base}; the pipeline's transformer is a {is_a}"
            )

    def refuse_other_weights(self, model: nn.Module) -> None:
        """Raises ``ValueError`` for a model with other weights than the one they were made from.

        Weights that are stored in another way than those were cannot be told apart, and pass.
        """
        if self.weights is None:
            return
        here = identity({"transformer": model})
        if here["storage"] != self.weights["storage"]:
            return
        if different := [f"{k} {self.weights[k]}, here {here[k]}" for k in here if here[k] != self.weights[k]]:
            base = f"({self.base}) " if self.base else ""
            raise ValueError(
                f"the experts in {self.folder} were made from other weights {base}than this {self.model['class']} has "
                f"({'; '.join(different)}): load the base model that they were distilled from, without adapters, or "
                "distil experts from this one"
            )


def save_experts(
    folder: str | Path,
    model: nn.Module,
    *,
    trajectory: Trajectory,
    boundary: float,
    semantic: Mapping[str, torch.Tensor] | Literal[True] | None = None,
    detail: Mapping[str, torch.Tensor] | None = None,
    adapter: Adapter | None = None,
    base: str = "",
    guidance: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a folder that ``vaccel.DualExpert`` runs with; replaces an earlier one.

    Args:
        folder: created if it is missing.
        model: the transformer that the experts are for, with the weights that they were made from: its class,
            configuration and weights are what a pipeline must have.
        trajectory, boundary: the teacher's path, and the unshifted time in (0, 1) where the detail expert takes over.
        semantic: the semantic expert's full state dict; True to keep the existing file; None where it is the base
            model itself.
        detail: with ``adapter`` the detail expert's ``own_parameters``, without it its full state dict, None for none.
        adapter: the detail expert's LoRA and own layers.
        base: name or path of the base model.
        guidance, training: plain data, for information.

    Returns the folder.  An interrupted write of another semantic expert leaves no ``dual_expert.json``, so that an
    incomplete folder is never read.  Raises ``ValueError`` for a boundary outside (0, 1), or an adapter without its
    parameters; ``OSError`` that names the file where one cannot be written.
    """
    if not 0 < boundary < 1:
        raise ValueError(f"boundary must lie between 0 and 1, got {boundary}")
    if adapter is not None and detail is None:
        raise ValueError("an adapter was given, and no parameters of it: pass detail=own_parameters(tree, adapter)")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = "none" if detail is None else "full" if adapter is None else "lora"
    weights = {DETAIL: detail} if semantic is True else {SEMANTIC: semantic, DETAIL: detail}
    _replace(folder, weights, undescribed=semantic is not True)
    described = {
        "schema": artifacts.SCHEMA,
        "method": METHOD,
        "base": str(base),
        "model": of_model(model),
        "weights": identity({"transformer": model}),
        "trajectory": trajectory.to_json(),
        "boundary": float(boundary),
        "guidance": dict(guidance or {}),
        "semantic": semantic is not None,
        "detail": {"kind": kind, **(adapter.to_json() if adapter is not None else {})},
        "training": dict(training or {}),
    }
    with naming(folder / DESCRIPTION):
        artifacts.write(folder / DESCRIPTION, described)
    return folder


def _replace(folder: Path, weights: Mapping[str, Mapping[str, torch.Tensor] | None], undescribed: bool) -> None:
    """Replaces the weight files once all new ones are written; None removes one.

    Where ``undescribed``, the description is removed before.
    """
    partials = {name: temporary(folder / name) for name, state in weights.items() if state is not None}
    try:
        for name, partial in partials.items():
            with naming(folder / name):
                artifacts.save_tensors(partial, weights[name], {"format": "pt"})
        if undescribed:
            (folder / DESCRIPTION).unlink(missing_ok=True)
        for name in weights:
            if name in partials:
                partials[name].replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of writing a file say which one; a full disk among them, which safetensors reports in its own way."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise
        code, reason = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
        raise OSError(code or errno.EIO, f"could not be written: {reason}", str(path)) from error


def read_experts(folder: str | Path) -> SavedExperts:
    """The description of a folder of experts, or of one on the hub by its name; does not read the weights.

    Raises ``ValueError`` for a name that is neither, for a folder that is incomplete or was edited, and for a field of
    the description that is not as declared (``vaccel.planning.schema``), which it names.
    """
    folder = _found(folder)
    try:
        data = artifacts.read(folder / DESCRIPTION, METHOD)
    except OSError as error:
        raise ValueError(f"{folder} has no {DESCRIPTION}: no complete experts were saved there") from error
    kind = data["detail"]["kind"]
    saved = SavedExperts(
        folder,
        data["base"],
        data["model"],
        Trajectory.from_json(_fields(Trajectory, data["trajectory"])),
        data["boundary"],
        data["semantic"],
        kind,
        Adapter.from_json(_fields(Adapter, data["detail"])) if kind == "lora" else None,
        data["training"],
        data.get("weights"),
    )
    for name in [SEMANTIC] * saved.semantic + [DETAIL] * (kind != "none"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}, which its {DESCRIPTION} names")
    return saved


def _fields(kind: type, data: Mapping[str, Any]) -> dict[str, Any]:
    """The data of a dataclass's fields; a file may have further ones."""
    return {field.name: data[field.name] for field in dataclasses.fields(kind)}


class WeightFile:
    """The tensors of a safetensors file, read one at a time.  Raises ``ValueError`` for a file that is damaged."""

    def __init__(self, path: Path):
        try:
            self._file = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} is no safetensors file, or was cut short: {error}") from None
        self.path, self.names = path, list(self._file.keys())

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copies every tensor into its namesake in place, in the latter's dtype; ``fits`` checks whether it can."""
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(self._file.get_tensor(name))

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Raises ``ValueError`` unless the file has the same names with the same shapes."""
        if odd := sorted(set(self.names) ^ set(tensors)):
            there = "the file" if odd[0] in self.names else "the transformer"
            raise ValueError(f"{self.path} does not fit the transformer: only {there} has {odd[0]}")
        for name, tensor in tensors.items():
            shape = self._file.get_slice(name).get_shape()
            if list(shape) != list(tensor.shape):
                raise ValueError(f"{self.path}: {name} is {list(shape)}, the transformer's {list(tensor.shape)}")

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: self._file.get_tensor(name) for name in self.names}


def _found(folder: str | Path) -> Path:
    path = Path(folder).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download

    name = os.fspath(folder)
    try:
        return Path(snapshot_download(name, allow_patterns=[DESCRIPTION, SEMANTIC, DETAIL]))
    except Exception as error:  # of the name, the network or the hub
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"there is no folder {name}, and the hub has no experts of that name: {reason}") from error
