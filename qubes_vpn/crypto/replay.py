"""Replay windows: which packet ids were not seen yet.

Source: OpenVPN 2 packet_id.c (packet_id_test, packet_id_reap), backtrack
mode.
"""

from collections import deque
from typing import Final

# How often the time rule notes the highest id, in seconds.
_MARK_INTERVAL: Final = 1.0


class ReplayWindow:
    """Accepts each packet id once, in any order within a window.

    Not accepted: 0, an id seen before, one that is `size` or more below the
    highest, and one below an id that was the highest over `seconds` ago.
    """

    __slots__ = (
        "_bitmap",
        "_floor",
        "_marks",
        "_mask",
        "_next_mark",
        "_seconds",
        "_size",
        "_top",
    )

    def __init__(self, size: int = 64, seconds: float = 15) -> None:
        """size: ids of backtrack. seconds: 0 means no time rule."""
        self._size = size
        self._seconds = seconds
        self._mask = (1 << size) - 1
        self._top = 0
        # Bit n: the id `top - n` was seen.
        self._bitmap = 0
        # Ids up to this one are too old.
        self._floor = 0
        self._marks: deque[tuple[float, int]] = deque()
        self._next_mark = float("-inf") if seconds else float("inf")

    @property
    def top(self) -> int:
        """The highest id that was accepted, 0 before the first."""
        return self._top

    def accept(self, packet_id: int, now: float) -> bool:
        """Say whether the id is new, and remember it.

        now: monotonic seconds. Call it only for authenticated packets.
        """
        ahead = packet_id - self._top
        if ahead > 0:
            if ahead < self._size:
                self._bitmap = (self._bitmap << ahead | 1) & self._mask
            else:
                self._bitmap = 1
            self._top = packet_id
            if now >= self._next_mark:
                self._mark_top(now)
            return True
        self._expire(now)
        if packet_id <= self._floor or -ahead >= self._size:
            return False
        bit = 1 << -ahead
        if self._bitmap & bit:
            return False
        self._bitmap |= bit
        return True

    def accept_run(self, first: int, count: int, now: float) -> bool:
        """Accept ids first..first+count if all are above the highest.

        Otherwise nothing is remembered, and the answer is False.
        """
        if first <= self._top:
            return False
        self.accept(first, now)
        if count > 1:
            more = count - 1
            self._top += more
            run = (1 << more) - 1
            self._bitmap = (self._bitmap << more | run) & self._mask
        return True

    def _mark_top(self, now: float) -> None:
        """Note that the highest id came now."""
        self._expire(now)
        self._marks.append((now, self._top))
        self._next_mark = now + _MARK_INTERVAL

    def _expire(self, now: float) -> None:
        """Raise the floor to the highest id that is too old."""
        marks = self._marks
        while marks and marks[0][0] + self._seconds < now:
            self._floor = marks.popleft()[1]


class PairReplayWindow:
    """A replay window for (time, id) pairs: the control channel's wraps.

    A later time starts anew, an earlier one is refused.
    """

    __slots__ = ("_seconds", "_size", "_time", "_window")

    def __init__(self, size: int = 64, seconds: float = 15) -> None:
        """size, seconds: as of ReplayWindow."""
        self._size = size
        self._seconds = seconds
        self._time = 0
        self._window = ReplayWindow(size, seconds)

    def accept(self, time: int, packet_id: int, now: float) -> bool:
        """Say whether the pair is new, and remember it.

        time: the sender's, unix seconds. now: ours, any clock in seconds.
        """
        if packet_id == 0 or time < self._time:
            return False
        if time > self._time:
            self._time = time
            self._window = ReplayWindow(self._size, self._seconds)
        return self._window.accept(packet_id, now)
