"""Forwarding as a whole: the last thing that can be closed.

What was turned off is remembered beside the keeper's socket, so that the
keeper which follows one that died meanwhile gives it back, too. Noted before
it is done and forgotten after it is undone: who dies in between is followed by
one that keeps it off for a while.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.policy import sysctls
from qubes_vpn.system import sysctl

NOTE: Final = "forwarding-off"


class Forwarding:
    """Turns forwarding off and on. note: the file that remembers, if any."""

    def __init__(self, note: Path | None = None) -> None:
        self._note = note
        self.stopped = note is not None and note.exists()
        self._taken = self._recall() if self.stopped else set()

    def off(self) -> None:
        """Turn off what is on, as far as the kernel lets us."""
        if not self.stopped:
            self.stopped = True
            self._remember()
        for path in sysctls.FORWARDING:
            with contextlib.suppress(OsRefusedError):
                if sysctl.wrong(path, 0):
                    self._taken.add(path)
                    self._remember()
                    sysctl.write(path, 0)

    def on(self) -> None:
        """Give back what was taken, and nothing else. OsRefusedError."""
        for path in self._taken:
            sysctl.write(path, 1)
        self._taken.clear()
        self.stopped = False
        if self._note is not None:
            # one that stays costs the next keeper a minute
            with contextlib.suppress(OSError):
                self._note.unlink()

    def _recall(self) -> set[str]:
        """Give what an earlier keeper took."""
        assert self._note is not None
        lines = self._note.read_text("ascii", "replace").splitlines()
        return set(lines) & set(sysctls.FORWARDING)

    def _remember(self) -> None:
        if self._note is None:
            return
        fresh = self._note.with_suffix(".new")
        # it is turned off all the same
        with contextlib.suppress(OSError):
            fresh.write_text("".join(f"{path}\n" for path in self._taken))
            os.replace(fresh, self._note)
