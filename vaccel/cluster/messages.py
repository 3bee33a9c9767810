"""All that is sent between a driver and its workers: plain data as MessagePack, checked on arrival.

Ray passes ``bytes`` on as they are; nothing else of ours is given to it, so that nothing is pickled but the name of the
workers' class.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

#: Bytes of an answer at most; what is larger is not fetched.
MOST_SAID = 2**20
MOST_SAMPLE = 2**29
MOST_CLIP = 2**31
#: Characters of what a worker says went wrong, and of its machine's name.
MOST_ERROR, MOST_NAME = 2000, 200

Text = Annotated[str, Meta(max_length=2**20)]
Name = Annotated[str, Meta(max_length=MOST_NAME)]
Kind = TypeVar("Kind")


class Attached(Struct, frozen=True, forbid_unknown_fields=True):
    """A calibration's file that a method reads: its path on the driver; None for what ships with vaccel."""

    path: str
    content: bytes | None


class Setup(Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker is to load.

    ``what`` is "clips" or a method that is calibrated; ``threads`` are for computing on a CPU, 0 for this machine's
    cores over ``share``, the number of workers on it; ``options`` are of ``what``.
    """

    what: str
    pipeline: str
    steps: int
    small: str | None = None
    call: list[str] = []
    dtype: str = "float32"
    threads: int = 0
    share: int = 1
    options: dict[str, Any] = {}
    files: list[Attached] = []


class Task(Struct, frozen=True, forbid_unknown_fields=True):
    """A clip or a sample to be made; ``held`` is JSON of what is known of it."""

    prompt: str
    seed: int
    what: str = ""
    held: bytes = b""


class Greeting(Struct, frozen=True, forbid_unknown_fields=True):
    """Which versions a worker has, and its machine's name."""

    versions: dict[Name, Name]
    machine: Name


class Ready(Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker has loaded: the fingerprint of clips' manifests, or JSON of a calibration's header."""

    fingerprint: Annotated[str, Meta(pattern=r"^([0-9a-f]{16})?$")] = ""
    header: bytes = b""
    several: int = 1


class Clip(Struct, frozen=True, forbid_unknown_fields=True):
    """A clip's file, and what the manifest says of it."""

    content: bytes
    seconds: float
    timeline: Text | None = None
    forwards: dict[Name, int] | None = None
    predicted: dict[Name, float] | None = None
    notes: list[Text] | None = None
    measured: dict[Name, float | Literal["inf"]] | None = None

    def said(self) -> dict[str, Any]:
        """The manifest's fields.  Raises ``ValueError`` for numbers that JSON has no word for."""
        found = {name: getattr(self, name) for name in self.__struct_fields__ if name != "content"}
        numbers = [self.seconds, *(self.predicted or {}).values(), *(self.measured or {}).values()]
        if not all(math.isfinite(float(number)) for number in numbers if number != "inf"):
            raise ValueError("a number of it is none")
        return {name: value for name, value in found.items() if value is not None}


class Reply(Struct, frozen=True, forbid_unknown_fields=True):
    """A worker's answer: ``data``, or what went wrong and whose ``fault`` it is.

    Of the "setup" no worker can make anything; a "task" fails wherever it is run; on another "machine" it may succeed.
    """

    data: bytes = b""
    error: Text = ""
    fault: Literal["", "setup", "task", "machine"] = ""


def write(message: Struct) -> bytes:
    """A message as bytes."""
    return msgspec.msgpack.encode(message)


def read(data: Any, kind: type[Kind], most: int = MOST_CLIP) -> Kind:
    """The message that ``write`` was called with.  Raises ``ValueError`` for anything else, and for too many bytes."""
    if not isinstance(data, bytes):
        raise ValueError(f"a message must be bytes, got {type(data).__name__}")
    if len(data) > most:
        raise ValueError(f"a message of {len(data)} bytes, at most {most} are read")
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"it is no {kind.__name__}: {error}") from None


def failed(error: BaseException, fault: Literal["setup", "task", "machine"]) -> bytes:
    """The reply that something went wrong."""
    return write(Reply(error=shown(f"{type(error).__name__}: {error}" if fault == "task" else str(error)), fault=fault))


def shown(text: str, most: int = MOST_ERROR) -> str:
    """A text of somebody else's as it may be printed: one line, no control characters, not too long."""
    line = " ".join(text.split())
    return "".join(c for c in line if c.isprintable())[:most] or "no reason was given"
