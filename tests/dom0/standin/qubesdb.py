"""A stand-in for Qubes' binding of QubesDB: its calls, and its limits.

The keys are in a folder that $FAKE_QUBESDB names, so that a test can change
them under a process that watches: `QubesDB().write` of one process is a report
in all others. Source: core-qubesdb, python/qubesdb.c and include/qubesdb.h.
"""

import os
import select
from pathlib import Path
from urllib.parse import quote, unquote

PATH_MAX = 64
VALUE_MAX = 3072


class Error(Exception):
    """As the binding's; its number is the first argument."""


class DisconnectedError(Error):
    pass


def _checked(path):
    if not path.startswith("/") or len(path) > PATH_MAX:
        raise Error(22, "Invalid argument")
    return path


class QubesDB:
    def __init__(self, folder=None):
        self._folder = Path(folder or os.environ["FAKE_QUBESDB"])
        self._folder.mkdir(exist_ok=True)
        self._watched = []
        self._fifo = -1

    def _file(self, path):
        return self._folder / quote(_checked(path), safe="")

    def read(self, path):
        try:
            return self._file(path).read_bytes()
        except FileNotFoundError:
            return None

    def list(self, path):
        found = (unquote(each.name) for each in self._folder.iterdir())
        return sorted(
            each
            for each in found
            if each.startswith(_checked(path)) and each.startswith("/")
        )

    def multiread(self, path):
        return {each: self.read(each) for each in self.list(path)}

    def write(self, path, value):
        value = value.encode() if isinstance(value, str) else value
        if len(value) > VALUE_MAX:
            raise Error(22, "Invalid argument")
        self._file(path).write_bytes(value)
        self._report(path)
        return True

    def rm(self, path):
        for each in self.list(path):
            self._file(each).unlink()
        self._report(path)
        return True

    def _report(self, path):
        for fifo in self._folder.glob("watch-*"):
            try:
                writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                continue  # whoever watched has gone
            os.write(writer, f"{path}\n".encode())
            os.close(writer)

    def watch(self, path):
        if self._fifo < 0:
            name = self._folder / f"watch-{os.getpid()}-{id(self)}"
            os.mkfifo(name)
            # read and write: it never reports an end
            self._fifo = os.open(name, os.O_RDWR)
        self._watched.append(_checked(path))
        return True

    def unwatch(self, path):
        self._watched.remove(path)
        return True

    def watch_fd(self):
        return self._fifo

    def read_watch(self):
        """Wait for a report, as the binding does."""
        while True:
            select.select([self._fifo], [], [])
            line = b""
            while not line.endswith(b"\n"):
                line += os.read(self._fifo, 1)
            path = line.decode().strip()
            for each in self._watched:
                below = each if each.endswith("/") else f"{each}/"
                if path == each or path.startswith(below):
                    return path

    def close(self):
        if self._fifo >= 0:
            os.close(self._fifo)
            self._fifo = -1
            name = self._folder / f"watch-{os.getpid()}-{id(self)}"
            name.unlink(missing_ok=True)
