"""Which address of which remote to try next, and when.

Pure: no clock and no socket. A *pass* is one try of every candidate. Within
a pass the next one follows after `connect-retry`'s first value; after each
pass the wait doubles, to its second value and never above BACKOFF_MAX.
"""

from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.engine.effects import Ended
from qubes_vpn.runtime.messages import Candidate

BACKOFF_MAX: Final = 30.0
# a session that lived this long was a success: start from the beginning
STABLE_S: Final = 60.0


@dataclass(slots=True)
class Rotation:
    """Goes around the candidates.

    retry: connect-retry's two values, in seconds. retry_max: passes before
    giving up, 0 for never.
    """

    candidates: tuple[Candidate, ...]
    retry: tuple[int, int] = (1, 30)
    retry_max: int = 0
    index: int = 0
    attempts: int = 0
    passes: int = 0
    _tried: set[int] = field(default_factory=set)

    @property
    def current(self) -> Candidate:
        """Give the candidate to try now."""
        return self.candidates[self.index]

    @property
    def exhausted(self) -> bool:
        """Tell whether connect-retry-max passes have failed."""
        return bool(self.retry_max) and self.passes >= self.retry_max

    def replace(self, candidates: tuple[Candidate, ...]) -> None:
        """Take a new list; begin at its first."""
        self.candidates = candidates
        self.index = 0
        self._tried.clear()

    def succeeded(self) -> None:
        """Note that the current candidate connected."""
        self.attempts = self.passes = 0
        self._tried.clear()

    def failed(self, ended: Ended, lived: float = 0.0) -> float:
        """Move on as `ended` says; give the seconds to wait first.

        lived: for how many seconds it was connected. What carried traffic
        for longer than the wait is tried again at once, and has not failed.
        """
        self.attempts += 1
        self._tried.add(self.index)
        self._advance(ended.advance)
        first, most = self.retry
        wait = float(first)
        if len(self._tried) >= len(self.candidates):
            self._tried.clear()
            self.passes += 1
            wait = min(first * 2.0 ** (self.passes - 1), float(most))
        wait = min(wait, BACKOFF_MAX)
        if lived > wait and not ended.backoff:
            self.succeeded()
            return 0.0
        return max(wait, ended.backoff)

    def _advance(self, how: str) -> None:
        if how == "no":
            return
        remote, count = self.current.remote, len(self.candidates)
        for _ in range(count):
            self.index = (self.index + 1) % count
            if how != "remote" or self.current.remote != remote:
                return
