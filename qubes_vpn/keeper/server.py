"""The keeper: does what it is asked, if it may be, and closes by itself.

One thread, one loop. Whatever ends (engine, agent, ourselves), the network is
closed first and cleaned up afterwards.
"""

import math
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import messages, talk
from qubes_vpn.keeper.bounds import RequestRefusedError, require
from qubes_vpn.keeper.codec import Codec
from qubes_vpn.keeper.device import Device
from qubes_vpn.keeper.layers import Layers
from qubes_vpn.keeper.phases import Phases, phase_name
from qubes_vpn.keeper.talk import Answer
from qubes_vpn.keeper.tunnel import DONE, Tunnel
from qubes_vpn.policy.phase import Blocked, Connected
from qubes_vpn.system import clock
from qubes_vpn.system.notify import WATCHDOG_S, Watchdog

# The loop is not woken more often, and not without a reason.
TICK_S: Final = 1.0
# An engine that has not spoken yet is still starting; it holds nothing.
STARTUP_S: Final = 30.0
SEND_TIMEOUT_S: Final = 1.0


@dataclass(slots=True)
class Engine:
    """The engine that is served, and when it was last heard."""

    sock: socket.socket
    heard: float
    spoke: bool = False

    @property
    def silent_at(self) -> float:
        """When it will have been silent for too long."""
        return self.heard + (messages.SILENCE_S if self.spoke else STARTUP_S)


class Keeper:
    """Serves one agent and one engine until it is told to stop."""

    def __init__(
        self, layers: Layers, device: Device, *, outlive_agent: bool = False
    ) -> None:
        self.layers = layers
        self.repairs = 0
        self.culprit = ""
        # why nothing is forwarded, and when it will be again
        self.stopped = ""
        self.resume_at = 0.0
        self.phases = Phases(layers, self.notice)
        self.on_tick: Callable[[], None] = lambda: None
        self.tick_due: Callable[[], float] = lambda: math.inf
        self._ticked = 0.0
        self._watchdog = Watchdog()
        self._tunnel = Tunnel(
            layers, self.phases, device, self._tell, self.watch
        )
        self._outlive_agent = outlive_agent
        self._selector = selectors.DefaultSelector()
        self._agent: socket.socket | None = None
        self._engine: Engine | None = None
        self._stopping = False
        self._handlers: dict[type, Callable[[Any, list[int]], Answer]] = {
            messages.AdoptEngine: self._adopt_engine,
            messages.GetStatus: self._get_status,
            messages.Heartbeat: self._heartbeat,
        }

    # --- the loop

    def start(self) -> None:
        """Close everything, whatever state was left. OsRefusedError."""
        self.phases.start()
        self._tunnel.delete_devices()
        self.phases.on_applied()

    def watch(self, readable: Any, callback: Callable[[], None]) -> None:  # noqa: ANN401 whatever selectors take
        """Call `callback` when `readable` has something."""
        self._selector.register(readable, selectors.EVENT_READ, callback)

    def unwatch(self, readable: Any) -> None:  # noqa: ANN401 whatever selectors take
        """Do not call for `readable` any more."""
        self._selector.unregister(readable)

    def stop(self) -> None:
        """End the loop after what is being done."""
        self._stopping = True

    def run(self) -> None:
        """Serve until stopped; closed when it returns."""
        try:
            while not self._stopping:
                wait = max(0.0, self._due() - clock.monotonic())
                for key, _ in self._selector.select(wait):
                    key.data()
                if clock.monotonic() >= self._due():
                    self._tick()
        finally:
            self._drop_engine("keeper-ends")
            self._shut("keeper-ends")

    def _due(self) -> float:
        """When the next tick has something to do."""
        due = min(
            self._ticked + WATCHDOG_S,
            self._engine.silent_at if self._engine else math.inf,
            self.phases.due(),
            self.tick_due(),
        )
        return max(due, self._ticked + TICK_S)

    def _tick(self) -> None:
        now = self._ticked = clock.monotonic()
        self._watchdog.feed(now)
        engine = self._engine
        # what waits to be read was said in time: it is we who are late
        if (
            engine is not None
            and now >= engine.silent_at
            and not talk.has_words(engine.sock)
        ):
            self._drop_engine("silent")
        self.culprit = self.phases.tick() or self.culprit
        self.on_tick()

    # --- who speaks

    @property
    def has_agent(self) -> bool:
        """Tell whether an agent is connected."""
        return self._agent is not None

    @property
    def has_engine(self) -> bool:
        """Tell whether an engine is connected."""
        return self._engine is not None

    def adopt_agent(self, sock: socket.socket) -> None:
        """Serve this agent; it is the only one."""
        sock.settimeout(SEND_TIMEOUT_S)
        self._agent = sock
        self.watch(sock, lambda: self._serve(sock, talk.AGENT))

    def adopt_engine(self, sock: socket.socket) -> None:
        """Serve this engine; the one before it is dropped first."""
        self._drop_engine("replaced")
        sock.settimeout(SEND_TIMEOUT_S)
        self._engine = Engine(sock, clock.monotonic())
        self.watch(sock, lambda: self._serve(sock, talk.ENGINE))

    def forget_the_dead(self) -> None:
        """See at once that a peer has ended, before another takes its place."""
        engine = self._engine.sock if self._engine else None
        for sock in (self._agent, engine):
            if sock is not None and talk.has_ended(sock):
                self._lost(sock, "gone")

    def notice(self, notice: messages.Notice) -> None:
        """Tell the agent; one that does not listen misses it."""
        if self._agent is not None:
            talk.tell(self._agent, notice)

    def _tell(self, notice: messages.Notice) -> None:
        """Tell whose matter it is."""
        if not isinstance(notice, messages.PeerEvent):
            self.notice(notice)
        elif self._engine is not None:
            talk.tell(self._engine.sock, notice)

    def _serve(self, sock: socket.socket, codec: Codec) -> None:
        """Take one request. What is no request ends the connection."""
        try:
            talk.serve(sock, codec, self._do)
        except talk.EndedError as error:
            self._lost(sock, error.reason)

    def _do(self, request: object, received: list[int]) -> Answer:
        handler = self._handlers.get(type(request))
        simple = self._tunnel.handlers.get(type(request))
        try:
            if simple is not None:
                return simple(request)
            require(handler, "unsupported")
            assert handler is not None
            return handler(request, received)
        except RequestRefusedError as error:
            return messages.Refused(error.reason, error.detail[:200]), []
        except OsRefusedError as error:
            self.phases.announce("refused")
            return messages.Refused("os-refused", str(error)[:200]), []

    def _lost(self, sock: socket.socket, reason: str) -> None:
        if self._engine is not None and sock is self._engine.sock:
            self._drop_engine(reason)
        elif sock is self._agent:
            self.unwatch(sock)
            sock.close()
            self._agent = None
            if not self._outlive_agent:
                self._stopping = True

    def _drop_engine(self, reason: str) -> None:
        """Close first; then end what the engine may still hold."""
        if self._engine is None:
            return
        engine, self._engine = self._engine, None
        final = self.phases.now == Blocked(final=True)
        self._shut(f"engine-{reason}", final=final)
        self.unwatch(engine.sock)
        engine.sock.close()
        self._tunnel.end()
        self.notice(messages.EngineLost(reason))

    # --- closing by ourselves

    def _shut(self, reason: str, *, final: bool = False) -> None:
        """Close; what fails is tried again with each tick."""
        self.culprit = self.phases.shut(reason, final=final) or self.culprit

    def fail_closed(self) -> None:
        """Close, because what is in force cannot be trusted any more."""
        self._drop_engine("not-safe")
        self._shut("not-safe")

    def restore_device(self) -> bool:
        """Undo what somebody did to the device; True: there was something.

        A device that is gone ends the engine, and closes.
        """
        try:
            if not self._tunnel.restore_device():
                return False
        except OsRefusedError:
            self._drop_engine("device-gone")
        # what was masqueraded meanwhile has another interface's address
        self.phases.forget_connections()
        return True

    # --- requests that are about engine and keeper

    def _adopt_engine(
        self, _: messages.AdoptEngine, received: list[int]
    ) -> Answer:
        require(len(received) == 1, "one-descriptor")
        self.adopt_engine(socket.socket(fileno=received.pop()))
        return DONE

    def _get_status(self, _: messages.GetStatus, __: list[int]) -> Answer:
        phase = self.phases.now
        return messages.KeeperStatus(
            phase=phase_name(phase),
            device=phase.device if isinstance(phase, Connected) else "",
            endpoint=self._tunnel.index,
            engine=self.has_engine,
            lock=self.layers.lock(),
            repairs=self.repairs,
            culprit=self.culprit,
            stopped=self.stopped,
            resumes_in=max(0, round(self.resume_at - clock.monotonic())),
        ), []

    def _heartbeat(self, _: messages.Heartbeat, __: list[int]) -> Answer:
        assert self._engine is not None
        self._engine.heard, self._engine.spoke = clock.monotonic(), True
        return DONE
