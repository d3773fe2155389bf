"""What a subcommand may touch besides its arguments."""

import argparse
import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

from qubes_vpn.errors import UnreadableError

if TYPE_CHECKING:
    # argparse has no public name for what add_subparsers returns
    Subcommands: TypeAlias = argparse._SubParsersAction[  # noqa: SLF001
        argparse.ArgumentParser
    ]

EX_OK = 0
EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_OSERR = 71
EX_CANTCREAT = 73
EX_NOPERM = 77
EX_CONFIG = 78


@dataclass(frozen=True, slots=True)
class World:
    """The streams of this run. stdin: where prompts and pipes are read."""

    out: TextIO
    err: TextIO
    stdin: TextIO

    def read_text(self, path: Path) -> str:
        """Read a UTF-8 file. Raises UnreadableError."""
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UnreadableError(f"{path}: {reason}") from error

    def read_bytes(self, path: Path) -> bytes:
        """Read a file. Raises UnreadableError."""
        try:
            return path.read_bytes()
        except OSError as error:
            raise UnreadableError(f"{path}: {error.strerror}") from error


def write_secret(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file that only its owner reads (0600), whole or not at all.

    Raises FileExistsError when it is there and `replace` is not set, and
    OSError when the file system refuses.
    """
    with _new_file(path, 0o600, replace=replace) as descriptor:
        _write_all(descriptor, content)


def write_public(path: Path, content: bytes, *, replace: bool = False) -> None:
    """Write a file that everybody may read; otherwise as write_secret."""
    with _new_file(path, 0o644, replace=replace) as descriptor:
        _write_all(descriptor, content)


@contextlib.contextmanager
def _new_file(path: Path, mode: int, *, replace: bool) -> Iterator[int]:
    """Open a new file beside `path` that takes its place at the end.

    link(2) refuses an existing name atomically, where rename(2) would
    replace it: nothing that appears meanwhile is overwritten.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, mode)
    try:
        yield descriptor
        os.fsync(descriptor)
        if replace:
            temporary.replace(path)
        else:
            os.link(temporary, path)
    finally:
        os.close(descriptor)
        temporary.unlink(missing_ok=True)


def _write_all(descriptor: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
