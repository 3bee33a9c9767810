"""Two calibrations of the same thing in one: what several writers of an artifact have measured, each sample once.

Samples are told apart by their keys (prompt and seed).  A sample that both have counts once, in the state that is
further; nothing is ever added twice.  What is made of all samples (a method's fields, the sum of inner products) is
made anew.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping
from typing import Any

import numpy as np

from .packing import added

#: What is made of the samples; everything else says what was calibrated and how.
MADE = ("samples", "prompts", "products", "times", "fields", "paths", "part", "digest")
#: Degree of TeaCache's polynomial.
DEGREE = 4
#: MixCache: the output's change is settled once it is within this share of its mean over the five steps before.
SETTLED = 0.2

Sample = dict[str, Any]


def hash_of(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def joins(data: Mapping[str, Any]) -> bool:
    """Whether an artifact consists of samples that can be joined with others."""
    return data.get("method") in _JOINED and isinstance(data.get("samples"), dict)


def joined(old: Mapping[str, Any] | None, new: Mapping[str, Any], *, part: bool = False) -> dict[str, Any]:
    """The artifact ``new`` with the samples of ``old``, of the same method.

    A ``part`` will be joined into another artifact: then no sums are made.  Raises ``ValueError`` for two calibrations
    of different things, saying what differs.
    """
    if old is not None and (different := differences(old, new)):
        raise ValueError(f"a calibration with another {', '.join(different)}")
    old = {} if old is None else old
    make = _JOINED[new["method"]]
    found = {**new, **make(old, new, part)}
    found["samples"] = {key: found["samples"][key] for key in sorted(found["samples"])}
    found.pop("part", None)
    if part:
        found["part"] = True
    found["prompts"] = hash_of("\n".join(found["samples"]))
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In words, in what two headers differ: "num_steps (12 there, 8 here)"."""
    plain = json.loads(json.dumps({name: value for name, value in new.items() if name not in MADE}))
    phrases: list[str] = []
    for name, here in plain.items():
        there = old.get(name)
        if there == here:
            continue
        if isinstance(there, dict) and isinstance(here, dict):
            names = [key for key in {**there, **here} if there.get(key) != here.get(key)]
            said = "" if name == "weights" else f"{name} "
            phrases += [f"{said}{key} {_told(there.get(key), here.get(key))}" for key in names]
        else:
            phrases.append(f"{name} {_told(there, here)}")
    return phrases


def _told(there: Any, here: Any) -> str:
    return f"({_short(there)} there, {_short(here)} here)"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."


# -- by method -------------------------------------------------------------------------------------------------------


def _forecast(old: Mapping[str, Any], new: Mapping[str, Any], part: bool) -> dict[str, Any]:
    """Samples keep their own inner products until they are done; then these go into the sum of all.

    A sample without products is in the sum, so the sum is always that of the file.
    """
    samples: dict[str, Sample] = dict(old.get("samples", {}))
    for key, sample in new["samples"].items():
        there = samples.get(key)
        if there is None:
            if old and "products" not in sample:
                raise ValueError(f"a calibration that does not have {key}, which was read from it: it was replaced")
            samples[key] = sample
        elif "products" in there and "products" in sample:
            samples[key] = sample if _steps_of(sample) >= _steps_of(there) else there
        elif tried(sample) and not tried(there):
            samples[key] = {name: value for name, value in sample.items() if name not in ("products", "done")}
    source = old if old else new
    kept = [source["products"]] if "products" in source else []
    for key, sample in () if part else sorted(samples.items()):
        if sample.get("done") and "products" in sample:
            kept.append(sample["products"])
            samples[key] = {name: value for name, value in sample.items() if name not in ("products", "done")}
    found: dict[str, Any] = {"samples": samples}
    if kept:
        found["products"] = added(kept)
    if times := old.get("times", new.get("times")):
        found["times"] = times
    every = [*old.get("paths", {}).items(), *new.get("paths", {}).items()]
    if paths := dict(sorted(every, key=lambda item: (item[1]["gain"], item[1]["tried"]))):  # the last of a name stays
        found["paths"] = paths
    return found


def _steps_of(sample: Sample) -> int:
    """How far a sample is."""
    return tried(sample) + bool(sample.get("done"))


def tried(sample: Sample) -> bool:
    """Whether its trial runs were made; older calibrations have them under another name."""
    return "curves" in sample or "trials" in sample


def _lemica(old: Mapping[str, Any], new: Mapping[str, Any], part: bool) -> dict[str, Any]:
    samples: dict[str, Sample] = dict(old.get("samples", {}))
    for key, sample in new["samples"].items():
        there = samples.get(key, sample)
        samples[key] = {
            **sample,
            "errors": {**there["errors"], **sample["errors"]},
            **{name: max(there[name], sample[name]) for name in ("forwards", "small_forwards")},
        }
        if there.get("done") or sample.get("done"):
            samples[key]["done"] = True
    return {"samples": samples}


def _teacache(old: Mapping[str, Any], new: Mapping[str, Any], part: bool) -> dict[str, Any]:
    samples = {**new["samples"], **old.get("samples", {})}
    if not samples:
        return {"samples": samples}
    return {"samples": samples, "fields": teacache_fields(samples, new["retention"])}


def teacache_fields(samples: Mapping[str, Sample], retention: bool) -> dict[str, Any]:
    """TeaCache's settings from all samples; fitted on a scaled domain, where the problem is well conditioned."""
    x, y = (np.concatenate([samples[key][name] for key in sorted(samples)]) for name in ("embedding", "output"))
    polynomial = np.polynomial.Polynomial.fit(x, y, min(DEGREE, len(set(x.tolist())) - 1)).convert()
    return {"coefficients": [float(c) for c in polynomial.coef[::-1]], "retention": retention}


def _mixcache(old: Mapping[str, Any], new: Mapping[str, Any], part: bool) -> dict[str, Any]:
    samples = {**new["samples"], **old.get("samples", {})}
    if not samples:
        return {"samples": samples}
    return {"samples": samples, "fields": mixcache_fields(samples, tuple(new["candidates"]))}


def mixcache_fields(samples: Mapping[str, Sample], candidates: tuple[int, ...]) -> dict[str, Any]:
    """MixCache's settings from all samples."""
    ordered = [samples[key] for key in sorted(samples)]
    impacts = [s["impacts"] for s in ordered]
    fitted = [_thresholds(s["changes"], s["wide_changes"]) for s in ordered]
    theta, d1, d2 = (statistics.fmean(values) for values in zip(*fitted, strict=True))
    found = {"candidates": list(candidates), "theta": theta, "d1": d1, "d2": d2}
    found["step_impact"] = statistics.fmean(statistics.fmean(i["step"]) for i in impacts)
    if "cfg" in impacts[0]:
        found["cfg_impact"] = statistics.fmean(statistics.fmean(i["cfg"]) for i in impacts)
    rows = ([i[str(c)] for i in impacts] for c in candidates)
    found["block_impacts"] = [[statistics.fmean(v) for v in zip(*row, strict=True)] for row in rows]
    return found


def _thresholds(changes: list[float], wide: list[float]) -> tuple[float, float, float]:
    """theta, d1 and d2 from one run's changes over one and three steps; by its second half where it never settles."""
    settled = len(changes) // 2
    for t in range(5, len(changes)):
        before = statistics.fmean(changes[t - 5 : t])
        if abs(changes[t] - before) <= SETTLED * before:
            settled = t
            break
    d1, d2 = statistics.quantiles(wide[settled:], n=3) if len(wide) > settled + 1 else (0.0, 0.0)
    return statistics.fmean(changes[settled:]), d1, d2


_JOINED = {"forecast": _forecast, "lemica": _lemica, "teacache": _teacache, "mixcache": _mixcache}
