"""Experts on a transformer: the semantic expert's weights in place of its own, the detail expert's beside them."""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterable, Mapping
from typing import IO

import torch
from torch import nn

from ..models import Family
from ..models.compiling import Compiler
from ..models.layout import Inputs
from ..models.transformer import Transformer
from .files import DETAIL, SEMANTIC, SavedExperts, WeightFile
from .trees import adapted, load_own, merged, separate


class Experts:
    """The experts of one transformer, until ``restore``.

    Args:
        model: the transformer, as the engine calls it; checked by ``suitable``.
        saved: the folder of experts.
        merge: add the detail expert's LoRA into copies of its layers' weights.

    Attributes:
        models: the two models that ``Expert(0)`` and ``Expert(1)`` call.

    Raises ``ValueError`` for weight files that are damaged or do not fit, and for a transformer with other weights than
    the experts were made from.  After this or any other failure the transformer has its original weights.
    """

    def __init__(self, model: Transformer, saved: SavedExperts, *, merge: bool = False):
        self.model, self._parked = model.model, None
        saved.refuse_other_weights(self.model)
        weights = WeightFile(saved.folder / SEMANTIC) if saved.semantic else None
        if weights is not None:
            weights.fits(_state(self.model))
        # Errors of the other file are found before any weight is replaced.
        tree = _detail(self.model, saved)
        try:
            if weights is not None:
                self._parked = Parked(self.model)
                weights.fill(_state(self.model))
            if saved.kind == "lora" and merge:
                tree = merged(tree)
        except BaseException:
            self.restore()
            raise
        self.detail = _Detail(tree, self.model, model.family, model.compiler) if tree is not None else model
        self.models = (model, self.detail)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of the detail expert's own tensors on the device, and of the parked original weights."""
        detail = self.detail.nbytes if isinstance(self.detail, _Detail) else 0
        return {"detail": detail, "parked": self._parked.nbytes if self._parked is not None else 0}

    def check(self) -> None:
        """Raises ``ValueError`` where the transformer has since got hooks or adapters that the experts would bypass."""
        if reason := _immovable(self.model):
            raise ValueError(f"the experts cannot run any more: {reason}. Call remove() before that is put on")
        if isinstance(self.detail, _Detail):  # before addresses are compared, and outside of a capture
            self.detail.synchronize()

    def offload(self) -> None:
        """Moves the detail expert off the device at the end of a run, where the pipeline offloads its models."""
        if isinstance(self.detail, _Detail) and "_hf_hook" in self.model.__dict__:
            self.detail.move(torch.device("cpu"))

    def restore(self) -> None:
        """Puts the original weights back, bit for bit.  It can be called again after an interruption.

        Raises ``ValueError`` where the weights have been offloaded by layers since.
        """
        if self._parked is None:
            return
        if self._parked.unreachable():
            raise ValueError(
                "the transformer's weights have been offloaded by layers, where the original ones cannot be put back: "
                "take the offload off (pipe.remove_all_hooks()), then call remove() again"
            )
        self._parked.put_back()
        self._parked = None


class Parked:
    """A copy of a model's weights: in host memory where they lie on a device, in a temporary file where on the host.

    The file has no name: it is mapped and exists for as long as this object does, so the kernel frees it however the
    process ends.

    Raises ``OSError``, which names the folder, where there is no room for the file.
    """

    def __init__(self, model: nn.Module):
        # By register: it stays the module's own where a LoRA renames the module or a move replaces the tensors.
        self._places = _places(model)
        tensors = {name: register[key].detach() for name, (register, key) in self._places.items()}
        self.nbytes = _nbytes(tensors.values())
        on_device = next(model.parameters()).device.type != "cpu"
        self._kept = {n: t.to("cpu", copy=True) for n, t in tensors.items()} if on_device else _mapped(tensors)

    def unreachable(self) -> bool:
        """Whether some of the model's weights are on the meta device, where nothing can be written."""
        return any(register[key].is_meta for register, key in self._places.values())

    def put_back(self) -> None:
        with torch.no_grad():
            for name, kept in self._kept.items():
                register, key = self._places[name]
                register[key].copy_(kept)
        self._kept = {}


#: Bytes that a tensor's place in a mapped file is a multiple of.
_ALIGNED = 64


def _mapped(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of host tensors in the memory map of a temporary file without a name.  Raises ``OSError``."""
    starts, end = {}, 0
    for name, tensor in tensors.items():
        starts[name] = end
        end += -(-tensor.numel() * tensor.element_size() // _ALIGNED) * _ALIGNED
    folder = tempfile.gettempdir()
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            for name, tensor in tensors.items():
                file.seek(starts[name])
                _write(file, tensor)
            file.truncate(max(end, 1))  # a map is of one byte at least
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the transformer's own weights ({end / 1e9:.2f} GB) cannot be kept in a temporary file: "
            f"{error.strerror or error}; set TMPDIR to a folder with room",
            folder,
        ) from error
    return {
        name: torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=starts[name]).view(t.shape)
        if t.numel()
        else torch.empty_like(t)
        for name, t in tensors.items()
    }


def _write(file: IO[bytes], tensor: torch.Tensor) -> None:
    """Writes a tensor's elements, whole: a raw file may take a part at a time."""
    left = memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())
    while len(left):
        left = left[file.write(left) :]


class _Detail(Transformer):
    """The detail expert's modules; their own tensors follow the shared ones to the transformer's device."""

    def __init__(self, tree: nn.Module, base: nn.Module, family: Family, compiler: Compiler | None):
        super().__init__(tree, family, compiler=compiler)
        theirs = {id(t) for t in (*base.parameters(), *base.buffers())}
        self._own = [p for p in tree.parameters() if id(p) not in theirs]
        for p in self._own:
            p.requires_grad_(False)
        # A move or a replacement puts another tensor into the module's registers; a copied module has its own ones.
        self._copied, self._own_buffers = [], []
        for name, module in tree.named_modules():
            source = _submodule(base, name)
            for register in ("_parameters", "_buffers"):
                copied = source is not None and source is not module
                own, others = vars(module)[register], vars(source)[register] if copied else {}
                self._copied += [(others, own, k) for k, t in own.items() if t is not None and others.get(k) is t]
            self._own_buffers += [
                (module._buffers, k) for k, t in module._buffers.items() if t is not None and id(t) not in theirs
            ]
        self._base = base

    @property
    def nbytes(self) -> int:
        return _nbytes([*self._own, *(buffers[key] for buffers, key in self._own_buffers)])

    def synchronize(self) -> None:
        """Moves its own tensors to the transformer's device and updates the shared ones."""
        device = next(self._base.parameters()).device
        if self._own and self._own[0].device != device:
            self.move(device)
        for theirs, ours, key in self._copied:
            ours[key] = theirs[key]

    def _onload(self) -> None:
        """Brings the transformer to its device where it is offloaded as a whole, and the expert's own tensors there."""
        hook = self._base.__dict__.get("_hf_hook")
        if hook is not None:
            hook.pre_forward(self._base)
            self.synchronize()

    def full(self, inputs: Inputs) -> torch.Tensor:
        self._onload()  # no call of the transformer's own does it here
        return super().full(inputs)

    def move(self, device: torch.device) -> None:
        for p in self._own:
            p.data = p.data.to(device)
        for buffers, key in self._own_buffers:
            buffers[key] = buffers[key].to(device)


def suitable(model: nn.Module, saved: SavedExperts) -> None:
    """Raises ``ValueError`` for a transformer that the experts were not made from, or with irreplaceable weights."""
    saved.refuse_other_models(model)
    if reason := unsuitable(model):
        raise ValueError(f"the experts' weights cannot take this transformer's place: {reason}")


def unsuitable(model: nn.Module) -> str | None:
    """Why a transformer's weights cannot be copied or replaced; None where they can."""
    return _immovable(model) or _patched(model)


def _immovable(model: nn.Module) -> str | None:
    """Why other weights cannot be copied into a transformer, or a copy of its modules would behave differently."""
    from accelerate.hooks import CpuOffload
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        where = f"its {name}" if name else "it"
        if isinstance(module, BaseTunerLayer):
            return f"{where} has a LoRA: fuse it into the weights or unload it first"
        registry = module.__dict__.get("_diffusers_hook")
        if hooks := list(registry.hooks) if registry is not None else []:
            return f"{where} carries hooks that one of the experts would bypass ({', '.join(hooks)}): take them off"
        if "_hf_hook" in module.__dict__ and (name or not isinstance(module._hf_hook, CpuOffload)):
            return f"{where} is offloaded by layers: use enable_model_cpu_offload() instead"
    for name, tensor in _state(model).items():
        plain = isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter
        if tensor.is_meta:
            return f"its {name} is on the meta device: its weights are not loaded, or offloaded by layers"
        if plain or type(tensor.data) is not torch.Tensor or (
            isinstance(tensor, nn.Parameter) and (not tensor.is_floating_point() or tensor.element_size() == 1)
        ):  # fmt: skip
            return f"its {name} is quantised ({type(tensor).__name__}, {tensor.dtype}): load it in bfloat16"
    return None


def _patched(model: nn.Module) -> str | None:
    """Which module's forward was replaced, which the detail expert's copies of modules would not have."""
    for name, module in model.named_modules():
        forward = module.__dict__.get("_old_forward", module.__dict__.get("forward"))
        if forward is not None and getattr(forward, "__func__", None) is not type(module).forward:
            return f"the forward of {f'its {name}' if name else 'it'} was replaced"
    return None


def _detail(model: nn.Module, saved: SavedExperts) -> nn.Module | None:
    """The detail expert over the transformer, with its own weights; random generators are not advanced."""
    if saved.kind == "none":
        return None
    weights = WeightFile(saved.folder / DETAIL)
    if saved.kind == "full":
        weights.fits(_state(model))
        tree = separate(model)
        weights.fill(_state(tree))
        return tree
    with torch.random.fork_rng(devices=[]):
        tree = adapted(model, saved.adapter)
    for module in tree.modules():  # peft creates them on torch's default device and in its default dtype
        if hasattr(module, "lora_A"):
            weight = module.get_base_layer().weight
            for factors in (module.lora_A, module.lora_B):
                factors.to(weight.device, weight.dtype)
    load_own(tree, saved.adapter, weights.tensors())
    return tree


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Its state dict, of the parameters and buffers themselves."""
    return model.state_dict(keep_vars=True)


def _places(model: nn.Module) -> dict[str, tuple[dict[str, torch.Tensor], str]]:
    """The register and the key of every parameter and saved buffer; tied weights appear once."""
    seen, places = set(), {}
    for name, module in model.named_modules():
        saved = [(module._buffers, k) for k in module._buffers if k not in module._non_persistent_buffers_set]
        for register, key in [*((module._parameters, k) for k in module._parameters), *saved]:
            if register[key] is not None and id(register[key]) not in seen:
                seen.add(id(register[key]))
                places[f"{name}.{key}"] = register, key
    return places


def _nbytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
