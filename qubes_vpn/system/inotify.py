"""Hearing that files changed: inotify(7), which Python does not have."""

import contextlib
import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
# linux/inotify.h. Not IN_CREATE: what is being written is not whole.
_CLOSE_WRITE: Final = 0x8
_MOVED: Final = 0xC0
_DELETE: Final = 0x200
_ONLYDIR: Final = 0x1000000
_EVENTS: Final = _CLOSE_WRITE | _MOVED | _DELETE | _ONLYDIR
_READ_MAX: Final = 65536


class Folders:
    """Readable after a file in one of the folders was written or renamed.

    What cannot be watched is not: look from time to time as well.
    """

    def __init__(self) -> None:
        self._fd: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:  # the user has too many: one that never tells
            self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._watches: set[int] = set()

    def fileno(self) -> int:
        """Give the descriptor; readable means `receive` is to be called."""
        return self._fd

    def follow(self, folders: Iterable[Path]) -> None:
        """Watch these, and no others; again after one was made anew."""
        found = {
            _libc.inotify_add_watch(self._fd, os.fsencode(folder), _EVENTS)
            for folder in folders
        }
        for old in self._watches - found:
            _libc.inotify_rm_watch(self._fd, old)
        self._watches = found - {-1}

    def receive(self) -> None:
        """Forget what has happened so far."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._fd, _READ_MAX)) == _READ_MAX:
                pass

    def close(self) -> None:
        """Watch nothing any more."""
        os.close(self._fd)
