"""The tunnel: endpoints, link, device and forwarding, as they are asked for."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import bounds, messages
from qubes_vpn.keeper.bounds import require
from qubes_vpn.keeper.device import Device
from qubes_vpn.keeper.kernel import KernelPeer
from qubes_vpn.keeper.layers import Layers
from qubes_vpn.keeper.phases import Phases
from qubes_vpn.keeper.talk import Answer
from qubes_vpn.policy.phase import (
    Blocked,
    Connected,
    Connecting,
    Endpoint,
    Plane,
    Transport,
)
from qubes_vpn.system.ovpn import News
from qubes_vpn.system.sockets import open_link

DNS_PORT: Final = 53
DONE: Final[Answer] = (messages.Done(), [])

Watch = Callable[[Any, Callable[[], None]], None]


class Tunnel:
    """What agent and engine ask for it; `handlers`, by the request's type.

    tell: takes what the agent, or of its peer the engine, is to know. watch:
    calls back when a socket has something. index: of the endpoint in use; -1.
    """

    def __init__(
        self,
        layers: Layers,
        phases: Phases,
        device: Device,
        tell: Callable[[messages.Notice], None],
        watch: Watch,
    ) -> None:
        self.index = -1
        self._layers = layers
        self._phases = phases
        self._tell = tell
        self._watch = watch
        self._tun = self._device = device
        self._kernel = KernelPeer(layers.rtnl, device.name)
        self._news: News | None = None
        self._endpoints: tuple[Endpoint, ...] = ()
        self._configured: messages.Configure | None = None
        self.handlers: dict[type, Callable[[Any], Answer]] = {
            messages.SetEndpoints: self._set_endpoints,
            messages.OpenResolver: self._open_resolver,
            messages.CloseResolver: self._close_resolver,
            messages.Close: self._close,
            messages.OpenLink: self._open_link,
            messages.OpenRelay: self._open_relay,
            messages.OpenTun: self._open_tun,
            messages.Configure: self._configure,
            messages.OpenForwarding: self._open_forwarding,
            messages.CloseForwarding: self._close_forwarding,
            messages.NewPeer: self._new_peer,
            **{
                kind: _answering(handler)
                for kind, handler in self._kernel.handlers.items()
            },
        }

    def delete_devices(self) -> None:
        """Delete the devices of both planes. OsRefusedError."""
        self._tun.delete()
        if self._kernel.device.name != self._tun.name:
            self._kernel.device.delete()

    def end(self) -> None:
        """End what an engine may still hold; closed before."""
        self.index = -1
        self._configured = None
        self._forget_peer()
        self._phases.forget_connections()
        with contextlib.suppress(OsRefusedError):
            self.delete_devices()

    def restore_device(self) -> bool:
        """Undo what somebody did to the device; True: there was something.

        OsRefusedError: it is gone.
        """
        request = self._configured
        if request is None or not isinstance(self._phases.now, Connected):
            return False
        if self._device.matches(request.addresses, request.mtu):
            return False
        self._device.configure(request.addresses, request.mtu)
        return True

    def _forget_peer(self) -> None:
        # closed before: what is left of it carries nothing of a qube
        with contextlib.suppress(OsRefusedError):
            self._kernel.forget()

    # --- requests

    def _set_endpoints(self, request: messages.SetEndpoints) -> Answer:
        bounds.check_endpoints(request.endpoints)
        phase = self._phases.now
        if not isinstance(phase, Blocked):
            if phase.endpoint in request.endpoints:
                self.index = request.endpoints.index(phase.endpoint)
            else:
                self.index = -1
                self._phases.to(Blocked(), "endpoint-removed")
                self._phases.forget_connections()
        self._endpoints = request.endpoints
        six = any(end.address.version == 6 for end in request.endpoints)
        self._layers.set_uplink_ipv6(wanted=six)
        return DONE

    def _open_resolver(self, request: messages.OpenResolver) -> Answer:
        bounds.check_address(request.resolver)
        end = Endpoint(request.resolver, Transport.UDP, DNS_PORT)
        self._phases.open_resolver(end)
        return messages.Done(), [_socket_to(end, self._layers.mark)]

    def _close_resolver(self, _: messages.CloseResolver) -> Answer:
        self._phases.withdraw_resolver()
        return DONE

    def _open_link(self, request: messages.OpenLink) -> Answer:
        bounds.check_link(request, len(self._endpoints))
        if request.plane is Plane.KERNEL:
            self._listen_to_driver()
        endpoint = self._endpoints[request.index]
        self.index = request.index
        self._phases.to(Connecting(endpoint, request.plane))
        self._forget_peer()
        descriptor = _socket_to(endpoint, self._layers.mark, request)
        if request.plane is Plane.KERNEL:
            self._kernel.hold(descriptor)
        return messages.Done(), [descriptor]

    def _open_relay(self, request: messages.OpenRelay) -> Answer:
        bounds.check_relay(request)
        phase = self._phases.now
        ready = isinstance(phase, Connecting) and phase.endpoint.relays
        require(ready, "no-relay")
        assert isinstance(phase, Connecting)
        self._phases.to(replace(phase, relay=request.port))
        end = Endpoint(phase.endpoint.address, Transport.UDP, request.port)
        descriptor = _socket_to(end, self._layers.mark, request)
        return messages.Done(), [descriptor]

    def _listen_to_driver(self) -> None:
        """Hear of the driver's peers; refused where there is no driver."""
        if self._news is None:
            self._news = self._kernel.news()
            self._watch(self._news, self._on_news)

    def _on_news(self) -> None:
        """Tell the engine what became of its peer."""
        assert self._news is not None
        try:
            found = list(self._news.receive())
        except OsRefusedError:
            return  # some were lost: the engine's own timers see it too
        for news in found:
            if self._kernel.concerns(news):
                self._tell(messages.PeerEvent(news.peer_id, news.what))

    def _new_peer(self, request: messages.NewPeer) -> Answer:
        phase = self._phases.now
        ready = isinstance(phase, Connecting) and phase.plane is Plane.KERNEL
        require(ready, "no-link")
        self._configured = None
        self._device = self._kernel.device
        self._kernel.new_peer(request)
        return messages.TunOpened(self._device.name), []

    def _open_tun(self, request: messages.OpenTun) -> Answer:
        phase = self._phases.now
        if not isinstance(phase, Blocked) and phase != Connecting(
            phase.endpoint
        ):
            self._phases.to(Connecting(phase.endpoint))
        self._forget_peer()
        self._configured = None
        self._device = self._tun
        descriptor, offloads = self._device.open(vnet_hdr=request.vnet_hdr)
        return messages.TunOpened(self._device.name, offloads), [descriptor]

    def _configure(self, request: messages.Configure) -> Answer:
        name = self._device.name
        destinations = bounds.check_configure(request, name)
        if self._device.configure(request.addresses, request.mtu):
            # an old address must not meet the new session
            self._phases.forget_connections()
        self._configured = request
        wanted = replace(self._layers.wanted, destinations=destinations)
        if isinstance(wanted.phase, Connected):
            phase = replace(wanted.phase, **_dns_of(request))
            wanted = replace(wanted, phase=phase)
        self._phases.go(wanted)
        self._tell(messages.DnsChanged(request.dns, request.search))
        return DONE

    def _open_forwarding(self, request: messages.OpenForwarding) -> Answer:
        bounds.check_forwarding(request)
        phase = self._phases.now
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
        self._phases.to(connected)
        return DONE

    def _close_forwarding(self, _: messages.CloseForwarding) -> Answer:
        phase = self._phases.now
        if isinstance(phase, Connected):
            self._phases.to(
                Connecting(phase.endpoint, phase.plane, phase.relay)
            )
        return DONE

    def _close(self, request: messages.Close) -> Answer:
        self.index = -1
        try:
            self._phases.to(Blocked(final=request.final), "asked")
        finally:
            self._forget_peer()
            self._phases.forget_connections()
        return DONE


def _answering(
    handler: Callable[[Any], messages.Reply],
) -> Callable[[Any], Answer]:
    """Make an answer of a reply that no descriptor goes with."""
    return lambda request: (handler(request), [])


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
