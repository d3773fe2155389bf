"""Reading a profile and the files that it names, from a disk.

Only regular files of a bounded size: a FIFO would hang us, a folder is no
profile, and a gigabyte is refused before it is read.
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from qubes_vpn.config.lexer import decode_text
from qubes_vpn.errors import UnreadableError

FILE_MAX: Final = 4 * 1024 * 1024


def read_bounded(
    path: str | Path, limit: int = FILE_MAX, *, private: bool = False
) -> bytes:
    """Read a regular file of at most `limit` bytes. Raises OSError.

    private: nobody but us, or root, may own it, and nobody else may use it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if private and (
            status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o077
        ):
            raise OSError("others than its owner can use it; chmod go= it")
        if status.st_size > limit:
            raise OSError(f"larger than {limit} bytes")
    except OSError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise OSError(f"larger than {limit} bytes")
    return data


def read_names(path: str | Path, limit: int = FILE_MAX) -> bytes:
    """Give the names in a folder, a line each. Raises OSError."""
    names = bytearray()
    with os.scandir(os.fsencode(path)) as entries:
        for entry in entries:
            names += entry.name + b"\n"
            if len(names) > limit:
                raise OSError(f"holds over {limit} bytes of names")
    return bytes(names)


def read_named(path: str | Path, name: str) -> bytes:
    """Read the file, or the folder, that a profile calls `name`."""
    return (read_names if name.endswith("/") else read_bounded)(path)


def why(error: OSError) -> str:
    """Give an error's own words, without number and path."""
    return error.strerror or str(error)


def read_profile(path: str) -> str:
    """Read the text of a profile.

    Raises UnreadableError when it cannot be read.
    """
    try:
        data = read_bounded(path)
    except OSError as error:
        raise UnreadableError(f"{path}: {why(error)}") from error
    return decode_text(data)


def profile_reader(path: str) -> Callable[[str], bytes]:
    """Give the reader of files that a profile names, relative to its folder.

    A name with / at its end is a folder: its names are given, a line each.
    The reader raises OSError; the parser says which line named the file.
    """
    folder = Path(path).resolve().parent
    return lambda name: read_named(folder / name, name)
