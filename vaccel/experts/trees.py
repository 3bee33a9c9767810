"""Two experts over one set of weights: the detail expert is the semantic one with LoRA and a few layers of its own.

``adapted`` makes another tree of modules over a transformer's weights: every module on the way to a changed layer is
a shallow copy, every other module and every weight is the transformer's own.  The transformer itself stays as it is,
so both experts exist at once, to call, compile or capture, and switching between them costs nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..models.views import HOOK_ATTRIBUTES

#: Name of the adapter in peft's layers.
ADAPTER = "detail"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The detail expert's own parameters (arXiv 2506.03123, section 3.3).

    Args:
        rank, alpha: of the LoRA.
        targets: suffixes of the names of the linear layers that get one.
        fresh: names of modules or parameters that it has its own copy of.
    """

    rank: int = 128
    alpha: int = 256
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    fresh: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Adapter:
        return cls(**{**data, "targets": tuple(data["targets"]), "fresh": tuple(data["fresh"])})


def adapted(model: nn.Module, adapter: Adapter) -> nn.Module:
    """The detail expert over ``model``'s weights; its own parameters, and they alone, are ``own_parameters``.

    Its output equals the model's at first: LoRA adds zero, copies are equal.  LoRA's first factors are drawn from
    torch's generator.  Raises ``ValueError`` where nothing matches a target, or where something that the tree would
    copy carries hooks or an adapter already.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if any(isinstance(m, BaseTunerLayer) for m in model.modules()):
        raise ValueError("the transformer has a LoRA already: fuse it into the weights or unload it first")
    targets = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and _ends(n, adapter.targets)]
    if missing := [t for t in adapter.targets if not any(_ends(n, (t,)) for n in targets)]:
        raise ValueError(f"no linear layer of {type(model).__name__} ends in {missing[0]!r}")
    tree = _copied_along(model, [*targets, *adapter.fresh])
    trained = [(p, p.requires_grad) for p in model.parameters()]
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, target_modules=targets)
    inject_adapter_in_model(config, tree, adapter_name=ADAPTER)
    for p, requires in trained:  # peft has frozen them, but they are the transformer's
        p.requires_grad_(requires)
    for name in adapter.fresh:
        parent, last = _parent(tree, name)
        own = copy.deepcopy(getattr(parent, last))
        for p in own.parameters() if isinstance(own, nn.Module) else [own]:
            p.requires_grad_(True)
        setattr(parent, last, own)
    return tree


def separate(model: nn.Module) -> nn.Module:
    """A second model of the same structure with its own parameters and saved buffers, which are uninitialised.

    Everything that is not in the state dict (other buffers, attention processors) is shared.  Nothing requires grad.
    """
    copies: dict[int, Any] = {}

    def own(tensor: torch.Tensor | None) -> torch.Tensor | None:
        if tensor is not None and id(tensor) not in copies:
            empty = torch.empty_like(tensor, requires_grad=False)
            copies[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
        return copies[id(tensor)] if tensor is not None else None

    def copied(module: nn.Module) -> nn.Module:
        if id(module) not in copies:
            new = copies[id(module)] = _shallow(module)
            new._parameters = {k: own(p) for k, p in module._parameters.items()}
            saved = set(module._buffers) - module._non_persistent_buffers_set
            new._buffers.update({k: own(module._buffers[k]) for k in saved})
            new._modules = {k: m if m is None else copied(m) for k, m in module._modules.items()}
        return copies[id(module)]

    return copied(model)


def own_parameters(tree: nn.Module, adapter: Adapter) -> dict[str, nn.Parameter]:
    """The detail expert's parameters that are not the transformer's, by their names in the file."""
    own = {}
    for name, p in tree.named_parameters():
        if f".{ADAPTER}." in name:
            own[name.replace(f".{ADAPTER}.", ".")] = p
        elif any(name == f or name.startswith(f + ".") for f in adapter.fresh):
            own[name] = p
    return own


def load_own(tree: nn.Module, adapter: Adapter, state: dict[str, torch.Tensor]) -> None:
    """Fills the detail expert's own parameters.  Raises ``ValueError`` for other names or shapes."""
    own = own_parameters(tree, adapter)
    if set(own) != set(state):
        odd = sorted(set(own) ^ set(state))
        raise ValueError(f"the saved detail expert does not fit: {odd[0]} is in one and not in the other")
    with torch.no_grad():
        for name, p in own.items():
            if p.shape != state[name].shape:
                raise ValueError(f"the saved {name} is {list(state[name].shape)}, the model's {list(p.shape)}")
            p.copy_(state[name])


def merged(tree: nn.Module) -> nn.Module:
    """The detail expert with its LoRA added into its own copies of the weights."""
    from peft.tuners.lora import LoraLayer

    found = [(name, m) for name, m in tree.named_modules() if isinstance(m, LoraLayer)]
    out = _copied_along(tree, [name for name, _ in found])
    for name, layer in found:
        base = layer.get_base_layer()
        plain = _shallow(base)
        weight = base.weight + layer.get_delta_weight(ADAPTER).to(base.weight.dtype)
        plain._parameters["weight"] = nn.Parameter(weight.detach(), requires_grad=False)
        parent, last = _parent(out, name)
        setattr(parent, last, plain)
    return out


def _ends(name: str, targets: Iterable[str]) -> bool:
    return any(name == t or name.endswith("." + t) for t in targets)


def _parent(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return root.get_submodule(path), last


def _ways(names: Iterable[str]) -> Iterator[str]:
    """The parent modules of ``names``, outer ones first, without the root."""
    seen = set()
    for name in names:
        parts = name.split(".")
        for i in range(1, len(parts)):
            path = ".".join(parts[:i])
            if path not in seen:
                seen.add(path)
                yield path


def _copied_along(model: nn.Module, names: Iterable[str]) -> nn.Module:
    root = _shallow(model)
    for path in _ways(names):
        parent, last = _parent(root, path)
        inner = parent._modules[last]
        registry = inner.__dict__.get("_diffusers_hook")  # an empty one may remain from one of diffusers' caches
        if "_hf_hook" in inner.__dict__ or (registry is not None and registry.hooks):
            raise ValueError(f"{path} of the transformer carries hooks (offload by layers?), which a copy would bypass")
        parent._modules[last] = _shallow(inner)
    return root


def _shallow(module: nn.Module) -> nn.Module:
    """A shallow copy of a module with its own registers."""
    new = copy.copy(module)
    for register in ("_modules", "_parameters", "_buffers"):
        new.__dict__[register] = dict(getattr(module, register))
    for name in HOOK_ATTRIBUTES:
        new.__dict__.pop(name, None)
    return new
