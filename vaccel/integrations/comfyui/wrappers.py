"""The wrappers that a model patch brings along, and what finds them again.

ComfyUI calls a wrapper as ``wrapper(executor, *args, **kwargs)``; ``executor(*args, **kwargs)`` goes on inwards, and
``executor.class_obj`` is whose method is wrapped.  Three places are used: OUTER_SAMPLE, around a whole sampling, opens
and closes its session; PREDICT_NOISE, around one question of the sampler, begins a call; DIFFUSION_MODEL, around the
network, stands in for it.  A session is found in the options that ComfyUI hands from one to the next, and those are
the sampling's own copy, so that nothing is left of it in the model.
"""

from __future__ import annotations

from typing import Any

import torch

from .choosing import Choice
from .journal import Journal, Record
from .session import Session

#: Under this our wrappers are registered, and sessions found.
KEY = "vaccel"
OUTER_SAMPLE, PREDICT_NOISE, DIFFUSION_MODEL = "outer_sample", "predict_noise", "diffusion_model"


def patched(model: Any, choice: Choice) -> Any:
    """A clone of ComfyUI's ``ModelPatcher`` whose samplings are accelerated; the model given is left as it is.

    In the place of an earlier patch of ours, if there is one.
    """
    made, journal = model.clone(), Journal()
    opening = Opening(choice, journal)
    for kind, wrapper in ((OUTER_SAMPLE, opening), (PREDICT_NOISE, _predicting), (DIFFUSION_MODEL, _standing_in)):
        made.remove_wrappers_with_key(kind, KEY)
        made.add_wrapper_with_key(kind, KEY, wrapper)
    return made


def journal_of(model: Any) -> Journal | None:
    """The journal of a patched model, or of a clone of it; None for a model without the patch."""
    found = [w for w in model.get_wrappers(OUTER_SAMPLE, KEY) if isinstance(w, Opening)]
    return found[-1].journal if found else None


class Opening:
    """Opens a session around a sampling, and closes it however that ends."""

    def __init__(self, choice: Choice, journal: Journal):
        self.choice, self.journal = choice, journal

    def __deepcopy__(self, memo: dict) -> Opening:
        return self

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        guider = executor.class_obj
        noise, sampler, sigmas, seed = (
            _argument(args, kwargs, *where) for where in ((0, "noise"), (2, "sampler"), (3, "sigmas"), (7, "seed"))
        )
        choice, name = self.choice, getattr(getattr(sampler, "sampler_function", None), "__name__", "a sampler")
        record = Record(name.removeprefix("sample_"), f"{choice.method}, {choice.aim} {choice.amount:g}")
        session = Session(choice, sampler, sigmas, seed, getattr(noise, "shape", ()), record)
        before = guider.model_options
        guider.model_options = options = _copied(before)
        options.setdefault("transformer_options", {})[KEY] = session
        for reason in _outside_our_reach(options, sigmas):
            session.all_from_here(reason)
        whole = False
        try:
            made = executor(*args, **kwargs)
            whole = True
            return made
        finally:
            guider.model_options = before
            session.close(whole=whole)
            self.journal.add(record)


def _outside_our_reach(options: dict[str, Any], sigmas: Any) -> list[str]:
    """What is known before the run of why nothing can stand in."""
    found = []
    if not isinstance(sigmas, torch.Tensor) or sigmas.ndim != 1 or len(sigmas) < 2:
        found.append("the sampling has no list of sigmas")
    if options.get("context_handler") is not None:
        found.append("context windows: parts of the latents take turns")
    if "multigpu_clones" in options:
        found.append("several GPUs share the conditions")
    if "easycache" in options.get("transformer_options", {}):
        found.append("ComfyUI's own EasyCache or LazyCache is on this model too: one of both is enough")
    return found


def _predicting(executor: Any, *args: Any, **kwargs: Any) -> Any:
    guider = executor.class_obj
    session = _session(getattr(guider, "model_options", None))
    if session is not None:
        session.begins(guider, _argument(args, kwargs, 1, "timestep"))
    return executor(*args, **kwargs)


def _standing_in(executor: Any, *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():  # the network is compiled with its wrappers: what is decided here would be frozen
        return executor(*args, **kwargs)
    options = _transformer_options(args, kwargs)
    session = options.get(KEY) if options is not None else None
    if not isinstance(session, Session) or not args:
        return executor(*args, **kwargs)
    return session.forward(lambda: executor(*args, **kwargs), args[0], options)


def _session(options: Any) -> Session | None:
    found = (options or {}).get("transformer_options", {}).get(KEY)
    return found if isinstance(found, Session) else None


def _transformer_options(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The ``transformer_options`` of a forward: networks take them by name or in various places."""
    named = kwargs.get("transformer_options")
    if isinstance(named, dict):
        return named
    return next((a for a in reversed(args) if isinstance(a, dict) and KEY in a), None)


def _argument(args: tuple, kwargs: dict[str, Any], place: int, name: str) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _copied(options: Any) -> Any:
    """Dictionaries and lists of their own, the things in them shared."""
    if isinstance(options, dict):
        return {key: _copied(value) if isinstance(value, (dict, list)) else value for key, value in options.items()}
    return list(options)
