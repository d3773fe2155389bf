"""The engine's values in the keeper's terms."""

from dataclasses import replace
from typing import Final

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.keeper import messages
from qubes_vpn.policy.phase import Endpoint, Transport
from qubes_vpn.qubes.qubesdb import DnsChoice

# What an uplink carries: Qubes' devices, and Ethernet everywhere.
LINK_MTU: Final = 1500
MTU6_MIN: Final = 1280
# An outer packet that every path carries: IPv6 asks for it.
SURE_PACKET: Final = 1280
TCP_IPV4: Final = 40
TCP_IPV6: Final = 60
MSS_MIN: Final = 512
# opcode and peer id 4, packet id 4, tag 16; the CBC ciphers take more
AEAD_OVERHEAD: Final = 24
CBC_OVERHEAD: Final = 4 + 64 + 16 + 16 + 4
AS_PUSHED: Final = DnsChoice()
NO_IPV6: Final = "ifconfig-ipv6"
DEFAULT4: Final = "0.0.0.0/0"
DEFAULT6: Final = "::/0"


def outer_header(endpoint: Endpoint) -> int:
    """Give the bytes of IP and transport headers around one packet."""
    ip = 20 if endpoint.address.version == 4 else 40
    return ip + (8 if endpoint.transport is Transport.UDP else 20 + 2)


def overhead(settings: TunnelSettings) -> int:
    """Give the bytes that the data channel adds to an inner packet."""
    aead = settings.cipher.endswith(("GCM", "POLY1305"))
    size = AEAD_OVERHEAD if aead else CBC_OVERHEAD
    # a byte of compression framing (stub-v2 takes none), an epoch's wider id
    return size + bool(settings.compression) + 4 * settings.aead_epoch


def inner_size(settings: TunnelSettings, endpoint: Endpoint) -> int:
    """Give the largest inner packet, in bytes, that `mssfix` allows."""
    most = min(settings.mtu, settings.path_mtu or settings.mtu)
    if not settings.mssfix:
        return most
    room = settings.mssfix
    if settings.mssfix_of != "fixed":
        room -= overhead(settings)
    if settings.mssfix_of == "mtu":
        room -= outer_header(endpoint)
    return min(most, room)


def on_path(settings: TunnelSettings) -> TunnelSettings:
    """Give the settings with an MTU whose packets the path carries.

    IPv6 needs 1,280 bytes of a device. On a path with less it is off, so
    that qubes take IPv4 at once and every packet of theirs fits; where IPv6
    is all there is, TCP is made to fit by its MSS, and other packets that
    are larger are lost.
    """
    mtu = min(settings.mtu, settings.path_mtu or settings.mtu)
    if not carries6(settings) or mtu >= MTU6_MIN:
        return replace(settings, mtu=mtu)
    dns = tuple(each for each in settings.dns if each.version == 4)
    if not carries4(settings) or (settings.dns and not dns):
        return replace(settings, mtu=max(mtu, min(settings.mtu, MTU6_MIN)))
    why = f"IPv6 needs {MTU6_MIN} bytes, and this path carries {mtu}"
    return replace(
        settings,
        mtu=mtu,
        ifconfig6=None,
        dns=dns,
        refused=(*settings.refused, (NO_IPV6, why)),
    )


def fitted(settings: TunnelSettings, endpoint: Endpoint) -> TunnelSettings:
    """Give the settings with an MTU whose packets fit the uplink.

    Outer packets are never fragmented: what does not fit would be lost in
    silence. With this the kernel fragments inside the tunnel, or tells the
    qube the size that fits. A stream has no such limit.
    """
    if endpoint.transport is Transport.TCP:
        return settings
    room = LINK_MTU - outer_header(endpoint) - overhead(settings)
    return replace(settings, mtu=min(settings.mtu, max(room, MTU6_MIN)))


def configure(
    settings: TunnelSettings, dns: DnsChoice = AS_PUSHED
) -> messages.Configure:
    """Say which addresses and routes the device gets, and where queries go.

    Everything goes into the tunnel, also what the server did not name: what
    it does not carry ends there and nowhere else.
    """
    addresses = [a for a in (settings.ifconfig4, settings.ifconfig6) if a]
    routes = [
        messages.Route(str(route.network), route.metric)
        for route in settings.routes
        if (carries6(settings) or route.network.version == 4)
    ]
    if carries4(settings):
        routes.insert(0, messages.Route(DEFAULT4))
    if carries6(settings):
        routes.insert(0, messages.Route(DEFAULT6))
    return messages.Configure(
        addresses=tuple(addresses),
        mtu=settings.mtu,
        routes=tuple(dict.fromkeys(routes))[: messages.ROUTES_MAX],
        dns=settings.dns[: messages.DNS_MAX],
        search=settings.search,
        dns_passthrough=dns.passthrough,
        block_dot=dns.block_dot,
    )


def open_forwarding(
    settings: TunnelSettings, endpoint: Endpoint, *, known: bool = True
) -> messages.OpenForwarding:
    """Say which families are opened, and how large a TCP segment may be.

    known: what the path carries is. Until it is, segments are such as pass
    everywhere: a connection that begins with longer ones would hang.
    """
    size = inner_size(settings, endpoint)
    if not known:
        around = outer_header(endpoint) + overhead(settings)
        size = min(size, SURE_PACKET - around)
    return messages.OpenForwarding(
        mss4=max(size - TCP_IPV4, MSS_MIN),
        mss6=max(size - TCP_IPV6, MSS_MIN),
        ipv4=carries4(settings),
        ipv6=carries6(settings),
    )


def carries4(settings: TunnelSettings) -> bool:
    """Tell whether IPv4 is carried."""
    return settings.ifconfig4 is not None and not settings.block_ipv4


def carries6(settings: TunnelSettings) -> bool:
    """Tell whether IPv6 is carried."""
    return settings.ifconfig6 is not None and not settings.block_ipv6
