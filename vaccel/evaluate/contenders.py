"""What is compared: our methods, diffusers' own caches, and the plain pipeline with fewer steps.

A contender is written as it would be called: ``DirectionMagnitude(threshold=0.005)``,
``diffusers.SeaCache(threshold=0.25)``, ``steps(25)``.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import vaccel

from .. import methods
from ..api import Handle, accelerate
from ..methods import Method
from ..planning.schema import step_count

Kind = Literal["vaccel", "diffusers", "steps"]
_CACHES = ("FirstBlockCache", "MagCache", "TaylorSeer", "SeaCache")


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run the pipeline.

    ``label`` is its text; ``group`` joins the points of one curve; ``num_steps`` is the number of steps that the
    pipeline is called with, None for the full model's.
    """

    label: str
    kind: Kind
    group: str
    method: Method | None = None
    options: tuple[tuple[str, Any], ...] = ()
    num_steps: int | None = None
    artifact: Path | None = None

    @property
    def key(self) -> str:
        """What makes it the same contender in another process: its text, and what came of it."""
        method = self.method.to_json() if self.method is not None else None
        text = json.dumps([self.kind, method, self.options, self.num_steps], sort_keys=True, default=str)
        return f"{self.label} #{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    @property
    def needs_small(self) -> bool:
        return self.method is not None and self.method.needs_small

    @property
    def needs_ratios(self) -> bool:
        """Whether it is diffusers' MagCache without the ratios of a calibration."""
        return self.group == "diffusers.MagCache" and "mag_ratios" not in dict(self.options)

    @contextlib.contextmanager
    def applied(self, pipe: Any, small: nn.Module | None, *, compile: bool = False) -> Iterator[Handle | None]:
        """Applies this contender to the pipeline within the context."""
        if self.kind == "vaccel":
            with accelerate(pipe, self.method, small=small if self.needs_small else None, compile=compile) as handle:
                yield handle
        elif self.kind == "diffusers":
            transformer, config = pipe.transformer, _cache_config(self.group.split(".")[1], dict(self.options))
            try:
                transformer.enable_cache(config)
            except Exception:
                with contextlib.suppress(Exception):  # hooks may be on some of its blocks already
                    transformer._cache_config = config
                    transformer.disable_cache()
                raise
            try:
                yield None
            finally:
                transformer.disable_cache()
        else:
            yield None


#: The pipeline as it is.
FULL = Contender("full", "steps", "full")


def parse_contender(text: str, folder: str | Path = ".") -> Contender:
    """Parses a contender; relative paths of artifacts are relative to ``folder``.

    ``TeaCache(artifact="teacache.json", threshold=0.1)`` takes its coefficients from a calibration artifact, and
    ``DualExpert(folder="dual_expert", steps=4)`` its experts from that folder inside ``folder``, or from wherever the
    method itself finds them.  Raises ``ValueError`` for a malformed text, an unknown method, or arguments that the
    method refuses.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{text!r} is not written like a call: {error.msg}") from None
    if isinstance(node, ast.Name):
        node = ast.Call(node, [], [])  # a name alone is called without arguments
    if not isinstance(node, ast.Call):
        raise ValueError(f"{text!r} is not written like a call, such as TeaCache(threshold=0.1)")
    name = ast.unparse(node.func)
    if name == "steps":
        args = _arguments(node, Path(folder), text)
        if set(args) != {""} or type(args[""]) is not int or args[""] < 1:
            raise ValueError(f"{text!r}: steps takes one positive number")
        step_count(args[""], "steps")
        return Contender(text, "steps", "fewer steps", num_steps=args[""])
    if name.startswith("diffusers."):
        cache = name.removeprefix("diffusers.")
        if cache not in _CACHES:
            raise ValueError(f"unknown cache {name!r}; known: {', '.join('diffusers.' + c for c in _CACHES)}")
        options = _arguments(node, Path(folder), text)
        if "" in options:
            raise ValueError(f"{text!r}: diffusers' caches take keyword arguments")
        return Contender(text, "diffusers", name, options=tuple(sorted(options.items())))
    method = _method(node, Path(folder), text)
    group = name if not isinstance(method, methods.SRDiffusion) or not method.rendering else f"{name} + TeaCache"
    named = [ast.literal_eval(k.value) for k in node.keywords if k.arg == "artifact"]
    artifact = Path(folder) / named[0] if named else None
    steps = method.experts.steps if method.experts is not None else None  # the experts' own number of steps
    return Contender(text, "vaccel", group, method=method, num_steps=steps, artifact=artifact)


def offered() -> dict[str, type[Method]]:
    """The methods that may be named: the public ones and a user's own, without those that calibrations use inside."""
    known = {kind.__name__: kind for kind in methods.base._METHODS.values()}
    return {n: k for n, k in known.items() if n in vaccel.__all__ or k.__module__.partition(".")[0] != "vaccel"}


def _arguments(node: ast.Call, folder: Path, text: str) -> dict[str, Any]:
    """Keyword arguments of a call, the first positional one under ""; only literals and methods."""

    def value(n: ast.expr) -> Any:
        if isinstance(n, ast.Call):
            return _method(n, folder, text)
        try:
            return ast.literal_eval(n)
        except ValueError:
            raise ValueError(f"{text!r}: {ast.unparse(n)} is neither a number, a string, a list nor a method") from None

    if len(node.args) > 1:
        raise ValueError(f"{text!r}: name the arguments after the first")
    named = {k.arg: value(k.value) for k in node.keywords}
    return {"": value(node.args[0]), **named} if node.args else named


def _method(node: ast.Call, folder: Path, text: str) -> Method:
    name = ast.unparse(node.func)
    known = offered()
    if name not in known:
        near = difflib.get_close_matches(name.lower(), {n.lower(): n for n in known}, 1)
        meant = next((f" (did you mean {n}?)" for n in known if n.lower() in near), "")
        raise ValueError(f"unknown method {name!r}{meant}; known: {', '.join(sorted(known))}")
    kwargs = _arguments(node, folder, text)
    args = [kwargs.pop("")] if "" in kwargs else []
    try:
        if "artifact" in kwargs:
            path = folder / kwargs.pop("artifact")
            return known[name].load(path, *args, **kwargs)
        if "preset" in kwargs:
            return known[name].preset(kwargs.pop("preset"), *args, **kwargs)
        method = known[name](*args, **kwargs)
        if isinstance(method, methods.DualExpert) and (folder / method.folder).is_dir():
            return dataclasses.replace(method, folder=folder / method.folder)
        return method
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{text!r}: {error}") from None


def _cache_config(name: str, options: dict[str, Any]) -> Any:
    import diffusers

    if name == "TaylorSeer":
        return diffusers.TaylorSeerCacheConfig(use_lite_mode=True, **options)
    return getattr(diffusers, f"{name}Config")(**options)


def calibrated(contenders: list[Contender], pipe: Any, prompt: str, call: dict[str, Any]) -> list[Contender]:
    """Gives MagCache contenders without ``mag_ratios`` their own, from diffusers' calibration run on ``prompt``."""
    if not any(c.needs_ratios for c in contenders):
        return contenders
    from diffusers import MagCacheConfig

    steps = call["num_inference_steps"]
    pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=steps))
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            pipe(prompt, **{"generator": torch.Generator().manual_seed(0), **call})
    finally:
        pipe.transformer.disable_cache()
    ratios = next(line for line in said.getvalue().splitlines() if line.startswith("["[0]) and line[1:2].isdigit())
    fitted = {"mag_ratios": tuple(ast.literal_eval(ratios)), "num_inference_steps": steps}
    return [
        dataclasses.replace(c, options=tuple(sorted({**fitted, **dict(c.options)}.items())))
        if c.group == "diffusers.MagCache"
        else c
        for c in contenders
    ]
