"""Calls into a loop of a selector, from signals and from other threads."""

import contextlib
import os
import selectors
import signal
from collections.abc import Callable


class Calls:
    """What is to be called next, in its order, by the loop itself."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._pending: list[Callable[[], object]] = []
        self._read, self._write = os.pipe2(os.O_NONBLOCK)
        self._wakeup: int | None = None
        selector.register(self._read, selectors.EVENT_READ, self._run)

    def on_signal(self, number: int, function: Callable[[], object]) -> None:
        """Have `function` called when this signal comes."""
        if self._wakeup is None:
            # or one that comes just before select waits is seen after it
            self._wakeup = signal.set_wakeup_fd(
                self._write, warn_on_full_buffer=False
            )
        signal.signal(number, lambda *_: self.soon(function))

    def soon(self, function: Callable[[], object]) -> None:
        """Have the loop call `function`; safe from any thread."""
        self._pending.append(function)
        # a full pipe wakes as well
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def _run(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._read, 4096)
        while self._pending:
            self._pending.pop(0)()

    def close(self) -> None:
        """Let go of the pipe."""
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup)
        os.close(self._read)
        os.close(self._write)
