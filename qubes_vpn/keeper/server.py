"""The keeper: does what it is asked, if it may be, and closes by itself.

One thread, one loop. Whatever ends (engine, agent, ourselves), the network is
closed first and cleaned up afterwards.
"""

import contextlib
import math
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import bounds, messages, talk
from qubes_vpn.keeper.bounds import RequestRefusedError, require
from qubes_vpn.keeper.codec import Codec
from qubes_vpn.keeper.device import Device
from qubes_vpn.keeper.kernel import KernelPeer
from qubes_vpn.keeper.layers import Layers
from qubes_vpn.keeper.phases import Phases, phase_name
from qubes_vpn.keeper.talk import Answer
from qubes_vpn.policy.phase import (
    Blocked,
    Connected,
    Connecting,
    Endpoint,
    Plane,
    Transport,
)
from qubes_vpn.system import clock
from qubes_vpn.system.notify import WATCHDOG_S, Watchdog
from qubes_vpn.system.ovpn import News
from qubes_vpn.system.sockets import open_link

# The loop is not woken more often, and not without a reason.
TICK_S: Final = 1.0
# An engine that has not spoken yet is still starting; it holds nothing.
STARTUP_S: Final = 30.0
SEND_TIMEOUT_S: Final = 1.0
DNS_PORT: Final = 53

_DONE: Final[Answer] = (messages.Done(), [])


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
        self._tun = self._device = device
        self._kernel = KernelPeer(layers.rtnl, device.name)
        self._news: News | None = None
        self._outlive_agent = outlive_agent
        self._selector = selectors.DefaultSelector()
        self._agent: socket.socket | None = None
        self._engine: Engine | None = None
        self._endpoints: tuple[Endpoint, ...] = ()
        self._index = -1
        self._plane = Plane.USERSPACE
        self._configured: messages.Configure | None = None
        self._stopping = False
        self._handlers: dict[type, Callable[[Any, list[int]], Answer]] = {
            messages.SetEndpoints: self._set_endpoints,
            messages.AdoptEngine: self._adopt_engine,
            messages.OpenResolver: self._open_resolver,
            messages.CloseResolver: self._close_resolver,
            messages.GetStatus: self._get_status,
            messages.Close: self._close,
            messages.OpenLink: self._open_link,
            messages.OpenRelay: self._open_relay,
            messages.OpenTun: self._open_tun,
            messages.Configure: self._configure,
            messages.OpenForwarding: self._open_forwarding,
            messages.CloseForwarding: self._close_forwarding,
            messages.Heartbeat: self._heartbeat,
            messages.NewPeer: self._new_peer,
        }

    # --- the loop

    def start(self) -> None:
        """Close everything, whatever state was left. OsRefusedError."""
        self.phases.start()
        self._delete_devices()
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

    def _serve(self, sock: socket.socket, codec: Codec) -> None:
        """Take one request. What is no request ends the connection."""
        try:
            talk.serve(sock, codec, self._do)
        except talk.EndedError as error:
            self._lost(sock, error.reason)

    def _do(self, request: object, received: list[int]) -> Answer:
        handler = self._handlers.get(type(request))
        simple = self._kernel.handlers.get(type(request))
        try:
            if simple is not None:
                return simple(request), []
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
        self._index = -1
        self._configured = None
        self._forget_peer()
        self.phases.forget_connections()
        with contextlib.suppress(OsRefusedError):
            self._delete_devices()
        self.notice(messages.EngineLost(reason))

    def _delete_devices(self) -> None:
        self._tun.delete()
        if self._kernel.device.name != self._tun.name:
            self._kernel.device.delete()

    def _forget_peer(self) -> None:
        # closed before: what is left of it carries nothing of a qube
        with contextlib.suppress(OsRefusedError):
            self._kernel.forget()

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
        request = self._configured
        if request is None or not isinstance(self.phases.now, Connected):
            return False
        try:
            if self._device.matches(request.addresses, request.mtu):
                return False
            self._device.configure(request.addresses, request.mtu)
        except OsRefusedError:
            self._drop_engine("device-gone")
        # what was masqueraded meanwhile has another interface's address
        self.phases.forget_connections()
        return True

    # --- requests of the agent

    def _set_endpoints(
        self, request: messages.SetEndpoints, _: list[int]
    ) -> Answer:
        bounds.check_endpoints(request.endpoints)
        phase = self.phases.now
        if not isinstance(phase, Blocked):
            if phase.endpoint in request.endpoints:
                self._index = request.endpoints.index(phase.endpoint)
            else:
                self._index = -1
                self.phases.to(Blocked(), "endpoint-removed")
                self.phases.forget_connections()
        self._endpoints = request.endpoints
        six = any(end.address.version == 6 for end in request.endpoints)
        self.layers.set_uplink_ipv6(wanted=six)
        return _DONE

    def _adopt_engine(
        self, _: messages.AdoptEngine, received: list[int]
    ) -> Answer:
        require(len(received) == 1, "one-descriptor")
        self.adopt_engine(socket.socket(fileno=received.pop()))
        return _DONE

    def _open_resolver(
        self, request: messages.OpenResolver, _: list[int]
    ) -> Answer:
        bounds.check_address(request.resolver)
        end = Endpoint(request.resolver, Transport.UDP, DNS_PORT)
        self.phases.open_resolver(end)
        return messages.Done(), [_socket_to(end, self.layers.mark)]

    def _close_resolver(
        self, _: messages.CloseResolver, __: list[int]
    ) -> Answer:
        self.phases.withdraw_resolver()
        return _DONE

    def _get_status(self, _: messages.GetStatus, __: list[int]) -> Answer:
        phase = self.phases.now
        return messages.KeeperStatus(
            phase=phase_name(phase),
            device=phase.device if isinstance(phase, Connected) else "",
            endpoint=self._index,
            engine=self.has_engine,
            lock=self.layers.lock(),
            repairs=self.repairs,
            culprit=self.culprit,
            stopped=self.stopped,
            resumes_in=max(0, round(self.resume_at - clock.monotonic())),
        ), []

    # --- requests of the engine

    def _heartbeat(self, _: messages.Heartbeat, __: list[int]) -> Answer:
        assert self._engine is not None
        self._engine.heard, self._engine.spoke = clock.monotonic(), True
        return _DONE

    def _open_link(self, request: messages.OpenLink, _: list[int]) -> Answer:
        bounds.check_link(request, len(self._endpoints))
        if request.plane is Plane.KERNEL:
            self._listen_to_driver()
        endpoint = self._endpoints[request.index]
        self._index = request.index
        self.phases.to(Connecting(endpoint, request.plane))
        self._forget_peer()
        descriptor = _socket_to(endpoint, self.layers.mark, request)
        if request.plane is Plane.KERNEL:
            self._kernel.hold(descriptor)
        return messages.Done(), [descriptor]

    def _open_relay(self, request: messages.OpenRelay, _: list[int]) -> Answer:
        bounds.check_relay(request)
        phase = self.phases.now
        ready = isinstance(phase, Connecting) and phase.endpoint.relays
        require(ready, "no-relay")
        assert isinstance(phase, Connecting)
        self.phases.to(replace(phase, relay=request.port))
        end = Endpoint(phase.endpoint.address, Transport.UDP, request.port)
        descriptor = _socket_to(end, self.layers.mark, request)
        return messages.Done(), [descriptor]

    def _listen_to_driver(self) -> None:
        """Hear of the driver's peers; refused where there is no driver."""
        if self._news is None:
            self._news = self._kernel.news()
            self.watch(self._news, self._on_news)

    def _on_news(self) -> None:
        """Tell the engine what became of its peer."""
        assert self._news is not None
        try:
            found = list(self._news.receive())
        except OsRefusedError:
            return  # some were lost: the engine's own timers see it too
        for news in found:
            if self._kernel.concerns(news) and self._engine is not None:
                event = messages.PeerEvent(news.peer_id, news.what)
                talk.tell(self._engine.sock, event)

    def _new_peer(self, request: messages.NewPeer, _: list[int]) -> Answer:
        phase = self.phases.now
        ready = isinstance(phase, Connecting) and phase.plane is Plane.KERNEL
        require(ready, "no-link")
        self._configured = None
        self._device = self._kernel.device
        self._kernel.new_peer(request)
        return messages.TunOpened(self._device.name), []

    def _open_tun(self, request: messages.OpenTun, _: list[int]) -> Answer:
        phase = self.phases.now
        if not isinstance(phase, Blocked) and phase != Connecting(
            phase.endpoint
        ):
            self.phases.to(Connecting(phase.endpoint))
        self._forget_peer()
        self._configured = None
        self._device = self._tun
        descriptor, offloads = self._device.open(vnet_hdr=request.vnet_hdr)
        return messages.TunOpened(self._device.name, offloads), [descriptor]

    def _configure(self, request: messages.Configure, _: list[int]) -> Answer:
        name = self._device.name
        destinations = bounds.check_configure(request, name)
        if self._device.configure(request.addresses, request.mtu):
            # an old address must not meet the new session
            self.phases.forget_connections()
        self._configured = request
        wanted = replace(self.layers.wanted, destinations=destinations)
        if isinstance(wanted.phase, Connected):
            phase = replace(wanted.phase, **_dns_of(request))
            wanted = replace(wanted, phase=phase)
        self.phases.go(wanted)
        self.notice(messages.DnsChanged(request.dns, request.search))
        return _DONE

    def _open_forwarding(
        self, request: messages.OpenForwarding, _: list[int]
    ) -> Answer:
        bounds.check_forwarding(request)
        phase = self.phases.now
        require(not isinstance(phase, Blocked), "no-link")
        assert not isinstance(phase, Blocked)
        require(self._configured, "not-configured")
        assert self._configured is not None
        connected = Connected(
            endpoint=phase.endpoint,
            device=self._device.link().name,
            mss4=request.mss4,
            mss6=request.mss6,
            ipv4=request.ipv4,
            ipv6=request.ipv6,
            plane=phase.plane,
            relay=phase.relay,
        )
        connected = replace(connected, **_dns_of(self._configured))
        self.phases.to(connected)
        return _DONE

    def _close_forwarding(
        self, _: messages.CloseForwarding, __: list[int]
    ) -> Answer:
        phase = self.phases.now
        if isinstance(phase, Connected):
            self.phases.to(Connecting(phase.endpoint, phase.plane, phase.relay))
        return _DONE

    def _close(self, request: messages.Close, _: list[int]) -> Answer:
        self._index = -1
        try:
            self.phases.to(Blocked(final=request.final), "asked")
        finally:
            self._forget_peer()
            self.phases.forget_connections()
        return _DONE


def _dns_of(request: messages.Configure) -> dict[str, Any]:
    """Give what a Configure says of DNS, as fields of Connected."""
    return {
        "dns": request.dns,
        "dns_passthrough": request.dns_passthrough,
        "block_dot": request.block_dot,
    }


def _socket_to(
    endpoint: Endpoint,
    mark: int,
    request: messages.OpenLink | messages.OpenRelay | None = None,
) -> int:
    """Open a socket with our mark and group; only its descriptor is kept."""
    sock = open_link(
        endpoint.address,
        endpoint.port,
        stream=endpoint.transport is Transport.TCP,
        mark=mark,
        lport=request.lport if request else 0,
        sndbuf=request.sndbuf if request else 0,
        rcvbuf=request.rcvbuf if request else 0,
        local=request.local if request else None,
    )
    return sock.detach()
