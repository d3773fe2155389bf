"""Pulled options: what a server may set, parsed and merged."""

from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)


@dataclass(frozen=True, slots=True)
class TunnelRoute:
    """A destination that the server carries."""

    network: IPv4Network | IPv6Network
    metric: int = 0


@dataclass(frozen=True, slots=True)
class TunnelSettings:
    """The tunnel as the profile and the server together describe it.

    All values are checked. ifconfig4 and ifconfig6: our address with its
    prefix. peer4: the other end in topology p2p or net30. mtu: of the
    device, in bytes. mssfix: 0 (off) or the outer size in bytes.
    cipher: negotiated. peer_id: 24 bits, or None (P_DATA_V1).
    default4, default6: the server carries everything. refused: options
    that were not applied, with the reason, for status.
    """

    ifconfig4: IPv4Interface | None = None
    ifconfig6: IPv6Interface | None = None
    peer4: IPv4Address | None = None
    topology: str = "net30"
    mtu: int = 1500
    mssfix: int = 1492
    routes: tuple[TunnelRoute, ...] = ()
    default4: bool = False
    default6: bool = False
    dns: tuple[IPv4Address | IPv6Address, ...] = ()
    search: tuple[str, ...] = ()
    cipher: str = "AES-256-GCM"
    digest: str = "SHA1"
    peer_id: int | None = None
    ping: int = 0
    ping_restart: int = 0
    ping_exit: int = 0
    inactive: int = 0
    inactive_bytes: int = 0
    session_timeout: int = 0
    explicit_exit_notify: int = 0
    tls_ekm: bool = False
    dyn_tls_crypt: bool = False
    cc_exit: bool = False
    aead_epoch: bool = False
    compression: str = ""
    fragment: int = 0
    block_ipv4: bool = False
    block_ipv6: bool = False
    auth_token: str = ""
    auth_token_user: str = ""
    refused: tuple[tuple[str, str], ...] = ()
