"""The keeper: does what it is asked, if it may be, and closes by itself.

One thread, one loop. Whatever ends (engine, agent, ourselves), the network is
closed first and cleaned up afterwards.
"""

import contextlib
import os
import select
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, get_args

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import bounds, messages
from qubes_vpn.keeper.bounds import RequestRefusedError, require
from qubes_vpn.keeper.codec import (
    Codec,
    MessageError,
    receive_record,
    send_record,
)
from qubes_vpn.keeper.device import Device
from qubes_vpn.keeper.kernel import KernelPeer
from qubes_vpn.keeper.layers import Layers, Wanted
from qubes_vpn.policy.phase import (
    Blocked,
    Connected,
    Connecting,
    Endpoint,
    Phase,
    Plane,
    Transport,
)
from qubes_vpn.system import clock
from qubes_vpn.system.notify import notify
from qubes_vpn.system.ovpn import News
from qubes_vpn.system.sockets import open_link

TICK_S: Final = 1.0
RESOLVER_S: Final = 30.0
# An engine that has not spoken yet is still starting; it holds nothing.
STARTUP_S: Final = 30.0
SEND_TIMEOUT_S: Final = 1.0
DNS_PORT: Final = 53

AGENT: Final = Codec(get_args(messages.AgentRequest))
ENGINE: Final = Codec(get_args(messages.EngineRequest))
ANSWERS: Final = Codec((*get_args(messages.Reply), *get_args(messages.Notice)))
Answer = tuple[messages.Reply, list[int]]
_DONE: Final[Answer] = (messages.Done(), [])


@dataclass(slots=True)
class Engine:
    """The engine that is served, and when it was last heard."""

    sock: socket.socket
    heard: float
    spoke: bool = False


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
        self.on_applied: Callable[[], None] = lambda: None
        self.on_tick: Callable[[], None] = lambda: None
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
        self._resolver_until = 0.0
        self._configured: messages.Configure | None = None
        self._stopping = False
        self._shut_again = False
        self._told = "blocked"
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
        self.layers.reset()
        self._forget_connections()
        self._delete_devices()
        self.on_applied()

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
        due = 0.0
        try:
            while not self._stopping:
                wait = max(0.0, due - clock.monotonic())
                for key, _ in self._selector.select(wait):
                    key.data()
                if clock.monotonic() >= due:
                    due = clock.monotonic() + TICK_S
                    self._tick()
        finally:
            self._drop_engine("keeper-ends")
            self._shut("keeper-ends")

    def _tick(self) -> None:
        notify("WATCHDOG=1")
        now = clock.monotonic()
        engine = self._engine
        if engine is not None:
            limit = messages.SILENCE_S if engine.spoke else STARTUP_S
            # what waits to be read was said in time: it is we who are late
            if now - engine.heard > limit and not _has_words(engine.sock):
                self._drop_engine("silent")
        if self._resolver_until and now >= self._resolver_until:
            self._withdraw_resolver()
        if self._shut_again:
            self._shut("retried")
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
        self.watch(sock, lambda: self._serve(sock, AGENT))

    def adopt_engine(self, sock: socket.socket) -> None:
        """Serve this engine; the one before it is dropped first."""
        self._drop_engine("replaced")
        sock.settimeout(SEND_TIMEOUT_S)
        self._engine = Engine(sock, clock.monotonic())
        self.watch(sock, lambda: self._serve(sock, ENGINE))

    def forget_the_dead(self) -> None:
        """See at once that a peer has ended, before another takes its place."""
        engine = self._engine.sock if self._engine else None
        for sock in (self._agent, engine):
            if sock is not None and _has_ended(sock):
                self._lost(sock, "gone")

    def notice(self, notice: messages.Notice) -> None:
        """Tell the agent; one that does not listen misses it."""
        if self._agent is None:
            return
        # its end is seen when it is read from
        with contextlib.suppress(OSError):
            send_record(self._agent, ANSWERS.encode(0, notice))

    def _serve(self, sock: socket.socket, codec: Codec) -> None:
        """Take one request. What is no request ends the connection."""
        try:
            data, received = receive_record(sock)
        except (OSError, MessageError):
            self._lost(sock, "bad-message")
            return
        if not data:
            self._lost(sock, "gone")
            return
        try:
            seq, request = codec.decode(data)
        except (MessageError, ValueError):
            _close_all(received)
            self._lost(sock, "bad-message")
            return
        answer, given = self._do(request, received)
        _close_all(received)
        try:
            send_record(sock, ANSWERS.encode(seq, answer), given)
        except OSError:
            self._lost(sock, "gone")
        finally:
            _close_all(given)

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
            self._announce("refused")
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
        final = self.layers.wanted.phase == Blocked(final=True)
        self._shut(f"engine-{reason}", final=final)
        self.unwatch(engine.sock)
        engine.sock.close()
        self._index = -1
        self._configured = None
        self._forget_peer()
        self._forget_connections()
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

    # --- going to a phase

    def _go(self, wanted: Wanted, reason: str = "") -> None:
        """Put a state in force, and say so. OsRefusedError: closed."""
        try:
            self.layers.apply(wanted)
        finally:
            if self.layers.wanted.resolver is None:
                self._resolver_until = 0.0
            self._announce(reason)
            self.on_applied()

    def _shut(self, reason: str, *, final: bool = False) -> None:
        """Close, by ourselves; what fails is tried again with each tick."""
        try:
            self._go(Wanted(Blocked(final=final)), reason)
            self._shut_again = False
        except OsRefusedError as error:
            self._shut_again = True
            self.culprit = str(error)[:200]

    def _announce(self, reason: str) -> None:
        name = phase_name(self.layers.wanted.phase)
        if name != self._told:
            self._told = name
            self.notice(messages.PhaseChanged(name, reason))

    def _to_phase(self, phase: Phase, reason: str = "") -> None:
        self._go(replace(self.layers.wanted, phase=phase), reason)

    def fail_closed(self) -> None:
        """Close, because what is in force cannot be trusted any more."""
        self._drop_engine("not-safe")
        self._shut("not-safe")

    def restore_device(self) -> bool:
        """Undo what somebody did to the device; True: there was something.

        A device that is gone ends the engine, and closes.
        """
        request = self._configured
        if request is None or not isinstance(
            self.layers.wanted.phase, Connected
        ):
            return False
        try:
            if self._device.matches(request.addresses, request.mtu):
                return False
            self._device.configure(request.addresses, request.mtu)
        except OsRefusedError:
            self._drop_engine("device-gone")
        # what was masqueraded meanwhile has another interface's address
        self._forget_connections()
        return True

    def _forget_connections(self) -> None:
        # a kernel without conntrack netlink: the layers hold alone
        with contextlib.suppress(OsRefusedError):
            self.layers.forget_connections()

    # --- requests of the agent

    def _set_endpoints(
        self, request: messages.SetEndpoints, _: list[int]
    ) -> Answer:
        bounds.check_endpoints(request.endpoints)
        phase = self.layers.wanted.phase
        if not isinstance(phase, Blocked):
            if phase.endpoint in request.endpoints:
                self._index = request.endpoints.index(phase.endpoint)
            else:
                self._index = -1
                self._to_phase(Blocked(), "endpoint-removed")
                self._forget_connections()
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
        self._go(replace(self.layers.wanted, resolver=end))
        self._resolver_until = clock.monotonic() + RESOLVER_S
        return messages.Done(), [_socket_to(end, self.layers.mark)]

    def _close_resolver(
        self, _: messages.CloseResolver, __: list[int]
    ) -> Answer:
        self._withdraw_resolver()
        return _DONE

    def _withdraw_resolver(self) -> None:
        self._resolver_until = 0.0
        if self.layers.wanted.resolver is not None:
            self._go(replace(self.layers.wanted, resolver=None))

    def _get_status(self, _: messages.GetStatus, __: list[int]) -> Answer:
        phase = self.layers.wanted.phase
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
        self._to_phase(Connecting(endpoint, request.plane))
        self._forget_peer()
        descriptor = _socket_to(endpoint, self.layers.mark, request)
        if request.plane is Plane.KERNEL:
            self._kernel.hold(descriptor)
        return messages.Done(), [descriptor]

    def _open_relay(self, request: messages.OpenRelay, _: list[int]) -> Answer:
        bounds.check_relay(request)
        phase = self.layers.wanted.phase
        ready = isinstance(phase, Connecting) and phase.endpoint.relays
        require(ready, "no-relay")
        assert isinstance(phase, Connecting)
        self._to_phase(replace(phase, relay=request.port))
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
                # its end is seen when it is read from
                with contextlib.suppress(OSError):
                    send_record(self._engine.sock, ANSWERS.encode(0, event))

    def _new_peer(self, request: messages.NewPeer, _: list[int]) -> Answer:
        phase = self.layers.wanted.phase
        ready = isinstance(phase, Connecting) and phase.plane is Plane.KERNEL
        require(ready, "no-link")
        self._configured = None
        self._device = self._kernel.device
        self._kernel.new_peer(request)
        return messages.TunOpened(self._device.name), []

    def _open_tun(self, request: messages.OpenTun, _: list[int]) -> Answer:
        phase = self.layers.wanted.phase
        if not isinstance(phase, Blocked) and phase != Connecting(
            phase.endpoint
        ):
            self._to_phase(Connecting(phase.endpoint))
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
            self._forget_connections()
        self._configured = request
        wanted = replace(self.layers.wanted, destinations=destinations)
        if isinstance(wanted.phase, Connected):
            phase = replace(wanted.phase, **_dns_of(request))
            wanted = replace(wanted, phase=phase)
        self._go(wanted)
        self.notice(messages.DnsChanged(request.dns, request.search))
        return _DONE

    def _open_forwarding(
        self, request: messages.OpenForwarding, _: list[int]
    ) -> Answer:
        bounds.check_forwarding(request)
        phase = self.layers.wanted.phase
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
        self._to_phase(connected)
        return _DONE

    def _close_forwarding(
        self, _: messages.CloseForwarding, __: list[int]
    ) -> Answer:
        phase = self.layers.wanted.phase
        if isinstance(phase, Connected):
            self._to_phase(Connecting(phase.endpoint, phase.plane, phase.relay))
        return _DONE

    def _close(self, request: messages.Close, _: list[int]) -> Answer:
        self._index = -1
        try:
            self._to_phase(Blocked(final=request.final), "asked")
        finally:
            self._forget_peer()
            self._forget_connections()
        return _DONE


def _dns_of(request: messages.Configure) -> dict[str, Any]:
    """Give what a Configure says of DNS, as fields of Connected."""
    return {
        "dns": request.dns,
        "dns_passthrough": request.dns_passthrough,
        "block_dot": request.block_dot,
    }


def phase_name(phase: Phase) -> str:
    """Give the phase's word in status and notices."""
    match phase:
        case Blocked():
            return "blocked"
        case Connecting():
            return "connecting"
        case Connected():
            return "connected"


def _has_words(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def _has_ended(sock: socket.socket) -> bool:
    if not _has_words(sock):
        return False
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except OSError:
        return True


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


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
