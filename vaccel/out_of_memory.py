"""How memory that has run out is told from other errors.  Imports nothing: the command line asks too."""

from __future__ import annotations

#: What errors say of memory, the host's too, in lower case.
SAY = ("out of memory", "can't allocate memory", "not enough memory")


def out_of_memory(error: BaseException) -> str:
    """What it says of memory that has run out, in a line; "" for any other error."""
    text = str(error)
    if isinstance(error, MemoryError) or any(said in text.lower() for said in SAY):
        return text.splitlines()[0] if text else "of the host"
    return ""
