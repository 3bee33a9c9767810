"""Where every figure comes from: a JSON a script writes, with commit, versions and command beside the numbers."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

BENCH = Path(__file__).resolve().parent
CHANGES = ("status", "--porcelain", "--", ":/", ":(exclude,top)bench/results")
PACKAGES = ("vaccel", "torch", "triton", "diffusers", "cache-dit")


def write(
    name: str,
    payload: dict[str, Any],
    device: str = "cpu",
    command: str | None = None,
    folder: Path | None = None,
) -> Path:
    """Writes ``bench/results/<device>/<name>.json``: where and when it was measured, then ``payload``.

    A file that is there is replaced by a whole one or not at all, whenever the process is killed.

    Args:
        name: stem of the file.
        payload: the figures, plain data; it may not name any of the fields written beside it.
        device: the folder, "cpu" or a GPU's short name such as "h200".
        folder: where to write instead of ``bench/results/<device>``.
        command: what reproduces the file, run from the repository's root; by default the one that runs now.

    Raises ``ValueError`` where a payload's field would hide one of those.
    """
    where = {"command": command or _command(), "device": device, **_measured()}
    if device != "cpu":
        where |= {"gpu": _gpu(), "driver": _driver(), "cuda": _cuda()}
    if hidden := sorted(set(where) & set(payload)):
        raise ValueError(f"the payload may not hold {hidden[0]!r}: it is written beside it")
    path = (folder or BENCH / "results" / device) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps({**where, **payload}, indent=2) + "\n")
    return unfinished.replace(path)


def _measured() -> dict[str, Any]:
    """Commit, date, machine and versions.  Figures written before do not count as uncommitted changes."""
    return {
        "commit": os.environ.get("VACCEL_COMMIT") or _git("rev-parse", "HEAD"),  # a copied tree may lack its repository
        "uncommitted_changes": bool(_git(*CHANGES)),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: _version(package) for package in PACKAGES},
    }


def _command() -> str:
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@functools.cache  # what runs is what was there when it began
def _git(*arguments: str) -> str | None:
    """What git says, None where there is no repository or no git."""
    try:
        done = subprocess.run(["git", *arguments], cwd=BENCH, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


_git("rev-parse", "HEAD"), _git(*CHANGES)  # asked now: a long measurement may end at another commit


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _cuda() -> str | None:
    import torch

    return torch.version.cuda


@functools.cache
def _driver() -> str | None:
    """The GPU driver's version, None without one."""
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
    except FileNotFoundError:
        return None
    return said[0] if said else None
