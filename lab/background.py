"""What goes on beside a test, in a thread of its own."""

import threading
from typing import Self


class Background:
    """Runs `_run` from start() to stop(), or while it is entered.

    `_run` returns soon after `_stop` is set.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        if self._thread:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        raise NotImplementedError
