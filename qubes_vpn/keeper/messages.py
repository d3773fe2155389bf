"""What may be asked of the keeper, and what it answers.

One message is one SOCK_SEQPACKET record: a JSON object of at most
MESSAGE_MAX bytes, `{"seq": n, "type": "OpenLink", ...}`, with at most
DESCRIPTORS_MAX descriptors as SCM_RIGHTS. Every field is typed and bounded
here; anything else is MessageError and closes the sender's connection. There
is no free text that reaches nft, a path or a shell.

Two roles speak: the *agent* (uid 0; in the foreground the parent process)
and the *engine* (one at a time). Each request carries a sequence number and
gets exactly one reply with the same number. Number 0 has no reply: the
keeper's notices, and the engine's heartbeats.
"""

from dataclasses import dataclass, field
from typing import TypeAlias

from qubes_vpn.policy.phase import (
    Address,
    Endpoint,
    Interface,
    Plane,
)

MESSAGE_MAX = 120_000
DESCRIPTORS_MAX = 4
ENDPOINTS_MAX = 512
ROUTES_MAX = 1024
DNS_MAX = 8
# An engine that is awake says so each HEARTBEAT_S; one that has nothing to do
# is woken for it after IDLE_S. After SILENCE_S the network is closed.
HEARTBEAT_S = 1.0
IDLE_S = 2.5
SILENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class Route:
    """A destination inside the tunnel. Canonical CIDR text, metric or 0."""

    destination: str
    metric: int = 0


# --- from the agent -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SetEndpoints:
    """Replace the list of endpoints; the engine names them by index.

    Closes first when a connected endpoint is no longer among them.
    """

    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True)
class AdoptEngine:
    """Serve this engine: one descriptor, its end of a socketpair.

    Any engine before it is dropped, and the network closed, first.
    """


@dataclass(frozen=True, slots=True)
class OpenResolver:
    """Open one UDP socket to a resolver, for one query of a server's name.

    Replies with the descriptor. The address stays allowed until
    CloseResolver, or for 30 s.
    """

    resolver: Address


@dataclass(frozen=True, slots=True)
class CloseResolver:
    """Withdraw the exception for the resolver."""


@dataclass(frozen=True, slots=True)
class GetStatus:
    """Ask for the keeper's own view. Replied with KeeperStatus."""


# --- from the engine ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenLink:
    """Go to phase Connecting and open a socket to endpoint number `index`.

    Replies with the descriptor: connected UDP, or TCP with its connect in
    progress, non-blocking, with our mark and group. lport 0: any. local: the
    address of ours to send from; None: the system's choice.
    """

    index: int
    plane: Plane = Plane.USERSPACE
    lport: int = 0
    sndbuf: int = 0
    rcvbuf: int = 0
    local: Address | None = None


@dataclass(frozen=True, slots=True)
class OpenRelay:
    """Open a UDP socket to a port of the proxy that the link leads to.

    Only where the endpoint relays: the address is the endpoint's, and only
    the port is the proxy's choice. Replies with the descriptor.
    """

    port: int
    lport: int = 0
    sndbuf: int = 0
    rcvbuf: int = 0
    local: Address | None = None


@dataclass(frozen=True, slots=True)
class OpenTun:
    """Make the tunnel device and hand it over: the userspace plane's.

    Replies TunOpened with the descriptor; the keeper keeps no copy. A link
    that was opened for the kernel plane is the userspace plane's from now on.
    vnet_hdr: with virtio-net headers, and TSO and USO where possible.
    """

    vnet_hdr: bool = False


@dataclass(frozen=True, slots=True)
class Configure:
    """Set the device's addresses and MTU, and the routes into it.

    routes: in table 7078. The whole new state: what is not named goes.
    dns: the tunnel's resolvers, in order. search: domains, LDH only.
    dns_passthrough: queries go where the qube sent them, in the tunnel.
    block_dot: port 853 is refused, so that programs fall back to port 53.
    """

    addresses: tuple[Interface, ...]
    mtu: int
    routes: tuple[Route, ...]
    dns: tuple[Address, ...] = ()
    search: tuple[str, ...] = ()
    dns_passthrough: bool = False
    block_dot: bool = False


@dataclass(frozen=True, slots=True)
class OpenForwarding:
    """Go to phase Connected with what Configure has set."""

    mss4: int
    mss6: int
    ipv4: bool = True
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class CloseForwarding:
    """Stop forwarding, keep the link: phase Connecting."""


@dataclass(frozen=True, slots=True)
class Close:
    """Go to phase Blocked. Either role may say it, at any time.

    final: it will not pass by itself (qubes are answered, not ignored).
    """

    final: bool = False


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Say that the engine lives."""


# --- for the kernel data plane ---------------------------------------------


@dataclass(frozen=True, slots=True)
class NewPeer:
    """Make the `ovpn` device; the link socket is its one peer.

    ping, ping_restart: seconds of keepalive, or 0. Replies TunOpened without
    a descriptor: there is nothing to read.
    """

    peer_id: int
    ping: int
    ping_restart: int


@dataclass(frozen=True, slots=True)
class SetPeer:
    """Change the peer's keepalive."""

    peer_id: int
    ping: int
    ping_restart: int


@dataclass(frozen=True, slots=True)
class NewKey:
    """Install keys in a slot. cipher as the kernel numbers them (1, 2).

    Keys are lower-case hexadecimal; nonce tails are 8 bytes.
    """

    peer_id: int
    slot: int
    key_id: int
    cipher: int
    encrypt_key: str = field(repr=False)
    encrypt_nonce: str = field(repr=False)
    decrypt_key: str = field(repr=False)
    decrypt_nonce: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class SwapKeys:
    """Exchange the key slots of the peer."""

    peer_id: int


@dataclass(frozen=True, slots=True)
class RemoveKey:
    """Forget the keys in a slot of the peer."""

    peer_id: int
    slot: int


@dataclass(frozen=True, slots=True)
class GetPeer:
    """Ask for the peer's counters. Replied with PeerCounters."""

    peer_id: int


@dataclass(frozen=True, slots=True)
class RemovePeer:
    """Detach the peer; the device stays, without carrier."""

    peer_id: int


# --- replies ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Done:
    """It has been done, and is in force."""


@dataclass(frozen=True, slots=True)
class Refused:
    """It was not done. reason: a stable slug; detail: one printable line."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class TunOpened:
    """The device's name, and which offloads it took (TUN_F_* bits)."""

    device: str
    offloads: int = 0


@dataclass(frozen=True, slots=True)
class PeerCounters:
    """Counters of the kernel's peer, in bytes and packets."""

    rx_bytes: int
    tx_bytes: int
    rx_packets: int
    tx_packets: int
    link_rx_bytes: int
    link_tx_bytes: int
    link_rx_packets: int = 0
    link_tx_packets: int = 0


@dataclass(frozen=True, slots=True)
class KeeperStatus:
    """What is in force, by the keeper's own knowledge.

    repairs: how often the guardian undid a change by somebody else.
    stopped: why nothing is forwarded at all, or "". resumes_in: the seconds
    without another change after which it goes on by itself.
    """

    phase: str
    device: str = ""
    endpoint: int = -1
    engine: bool = False
    lock: tuple[str, ...] = ()
    repairs: int = 0
    culprit: str = ""
    stopped: str = ""
    resumes_in: int = 0


# --- notices to the agent (seq 0) -------------------------------------------


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The phase in force changed: blocked, connecting or connected."""

    phase: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class EngineLost:
    """The engine ended or fell silent; the network is closed already."""

    reason: str


@dataclass(frozen=True, slots=True)
class Repaired:
    """Somebody changed what is ours, and it was put back."""

    layer: str
    what: str
    culprit: str = ""


@dataclass(frozen=True, slots=True)
class ForwardingChanged:
    """Nothing is forwarded any more, or again. reason: why not; "": it is."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class DnsChanged:
    """The tunnel's resolvers, for resolv.conf and the agent's DNAT."""

    dns: tuple[Address, ...]
    search: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Commands:
    """What root has to run, because the keeper may not. Shell lines."""

    lines: tuple[str, ...]


# --- notice to the engine (seq 0) -------------------------------------------


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """The kernel's peer is gone, or its keys are used up.

    what: teardown, userspace, expired, transport-error, transport-disconnect
    (the peer is gone) or keys-worn-out.
    """

    peer_id: int
    what: str


AgentRequest: TypeAlias = (
    SetEndpoints
    | AdoptEngine
    | OpenResolver
    | CloseResolver
    | GetStatus
    | Close
)
EngineRequest: TypeAlias = (
    OpenLink
    | OpenRelay
    | OpenTun
    | Configure
    | OpenForwarding
    | CloseForwarding
    | Close
    | Heartbeat
    | NewPeer
    | SetPeer
    | NewKey
    | SwapKeys
    | RemoveKey
    | GetPeer
    | RemovePeer
)
Reply: TypeAlias = Done | Refused | TunOpened | PeerCounters | KeeperStatus
Notice: TypeAlias = (
    PhaseChanged
    | EngineLost
    | Repaired
    | ForwardingChanged
    | DnsChanged
    | Commands
    | PeerEvent
)
