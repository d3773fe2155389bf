"""From phase to phase: what is put in force, and what is said of it."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.layers import Layers, Wanted
from qubes_vpn.policy.phase import (
    Blocked,
    Connected,
    Connecting,
    Endpoint,
    Phase,
)
from qubes_vpn.system import clock

RESOLVER_S: Final = 30.0


class Phases:
    """Goes to phases. tell: of each change; on_applied: after each attempt."""

    def __init__(
        self, layers: Layers, tell: Callable[[messages.Notice], None]
    ) -> None:
        self.on_applied: Callable[[], None] = lambda: None
        self._layers = layers
        self._tell = tell
        self._told = phase_name(Blocked())
        self._shut_again = False
        self._resolver_until = 0.0

    @property
    def now(self) -> Phase:
        """Give the phase that is in force."""
        return self._layers.wanted.phase

    def start(self) -> None:
        """Close everything, whatever state was left. OsRefusedError."""
        self._layers.reset()
        self.forget_connections()

    def go(self, wanted: Wanted, reason: str = "") -> None:
        """Put a state in force, and say so. OsRefusedError: closed."""
        try:
            self._layers.apply(wanted)
        finally:
            if self._layers.wanted.resolver is None:
                self._resolver_until = 0.0
            self.announce(reason)
            self.on_applied()

    def to(self, phase: Phase, reason: str = "") -> None:
        """Go to a phase, with everything else as it is. As `go`."""
        self.go(replace(self._layers.wanted, phase=phase), reason)

    def shut(self, reason: str, *, final: bool = False) -> str:
        """Close, by ourselves; give what went wrong: `tick` tries again."""
        try:
            self.go(Wanted(Blocked(final=final)), reason)
        except OsRefusedError as error:
            self._shut_again = True
            return str(error)[:200]
        self._shut_again = False
        return ""

    def due(self) -> float:
        """Say when `tick` has something to do, in monotonic seconds."""
        if self._shut_again:
            return 0.0
        return self._resolver_until or math.inf

    def tick(self) -> str:
        """Do what is due. As `shut`."""
        if self._resolver_until and clock.monotonic() >= self._resolver_until:
            self.withdraw_resolver()
        return self.shut("retried") if self._shut_again else ""

    def announce(self, reason: str) -> None:
        """Say which phase it is, if that has changed."""
        name = phase_name(self.now)
        if name != self._told:
            self._told = name
            self._tell(messages.PhaseChanged(name, reason))

    def open_resolver(self, end: Endpoint) -> None:
        """Let one resolver be asked, for a while. As `go`."""
        self.go(replace(self._layers.wanted, resolver=end))
        self._resolver_until = clock.monotonic() + RESOLVER_S

    def withdraw_resolver(self) -> None:
        """Let no resolver be asked. As `go`."""
        self._resolver_until = 0.0
        if self._layers.wanted.resolver is not None:
            self.go(replace(self._layers.wanted, resolver=None))

    def forget_connections(self) -> None:
        """Have nothing go on that began in another phase."""
        # a kernel without conntrack netlink: the layers hold alone
        with contextlib.suppress(OsRefusedError):
            self._layers.forget_connections()


def phase_name(phase: Phase) -> str:
    """Give the phase's word in status and notices."""
    match phase:
        case Blocked():
            return "blocked"
        case Connecting():
            return "connecting"
        case Connected():
            return "connected"
