"""What a file is before it is opened: a reader that waits for a pipe or reads a device never returns."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import NamedTuple


class FileState(NamedTuple):
    """Equal for as long as a path names the same file with the same content: where it is, and what its system says."""

    path: str
    device: int
    inode: int
    size: int
    modified: int


def state(path: str | Path, what: str = "a calibration artifact") -> FileState:
    """The state of a regular file, links followed; ``what`` is what it should be.

    Raises ``ValueError`` for a folder, a pipe, a device, links that lead in a circle and names that no file can have;
    ``FileNotFoundError`` where there is nothing, and other errors of the system as they come.
    """
    try:
        found = Path(path).stat()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR):
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        raise
    except ValueError as error:  # a null character
        raise ValueError(f"{str(path)!r} is no name of a file: {error}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{path} is not {what} but {kind}")
    return FileState(str(Path(path).absolute()), found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
