"""The values that profiles and pushes become: frozen, checked, no text."""

from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)


@dataclass(frozen=True, slots=True)
class Remote:
    """One `remote`: where a server is said to be.

    host: a name or an address. proto: udp or tcp. family: 4, 6 or 0 (any).
    proxy: HTTP or SOCKS, before the server, or None. control_wrap: of its
    connection block, where that has one of its own; so is max_packet_size, of
    control packets, in bytes. mssfix_of: what its size is of; "" the link's
    payload, mtu the link's packet, fixed the inner one.
    """

    host: str
    port: int = 1194
    proto: str = "udp"
    family: int = 0
    proxy: "Proxy | None" = None
    connect_timeout: int = 120
    explicit_exit_notify: int = 0
    lport: int = 0
    local: str = ""
    mssfix: int | None = None
    mssfix_of: str = "mtu"
    max_packet_size: int | None = None
    tun_mtu: int | None = None
    fragment: int = 0
    control_wrap: "ControlWrapKey | None" = None


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP or SOCKS5 proxy before the server."""

    kind: str
    host: str
    port: int
    auth: str = "none"
    username: str = ""
    password: str = field(repr=False, default="")
    user_agent: str = ""
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ControlWrapKey:
    """Which control wrap, and its key: 256 bytes, or tls-crypt-v2's.

    kind: plain, tls-auth, tls-crypt or tls-crypt-v2. direction: 0, 1 or
    None (both ways with the same key), for tls-auth. wkc: the wrapped
    client key of tls-crypt-v2.
    """

    kind: str = "plain"
    key: bytes = field(repr=False, default=b"")
    direction: int | None = None
    digest: str = "SHA1"
    wkc: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, slots=True)
class Identity:
    """Our certificate, its chain and its key, as PEM; empty when none.

    passphrase: of an encrypted key, when askpass gave it.
    pkcs12: DER, instead of the others.
    """

    certificate: bytes = b""
    chain: bytes = b""
    key: bytes = field(repr=False, default=b"")
    passphrase: bytes | None = field(repr=False, default=None)
    pkcs12: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """What makes a server the right one. All that is set must hold.

    fingerprints: SHA-256 of the leaf, 32 bytes each. verify_hash: the
    digest's name and value for a certificate of the chain. name: of
    verify-x509-name, with name_type subject, name or name-prefix.
    eku: an OID or a name; ku: accepted key usage bit masks (0: any present).
    crl: PEM certificate lists. revoked: serial numbers in decimal, of a folder
    of them. crl_path: where they were read, "" for a block, with / at the end
    for a folder.
    """

    ca: bytes = b""
    fingerprints: tuple[bytes, ...] = ()
    verify_hash: tuple[str, bytes] | None = None
    name: str = ""
    name_type: str = ""
    eku: str = ""
    ku: tuple[int, ...] | None = None
    crl: bytes = b""
    username_field: str = "CN"
    ns_cert_type: str = ""
    revoked: frozenset[str] = frozenset()
    crl_path: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """How TLS is spoken. Versions as "1.2" or "1.3"; lists by OpenVPN."""

    version_min: str = "1.2"
    version_max: str = ""
    cipher: str = ""
    ciphersuites: str = ""
    groups: str = ""
    cert_profile: str = "legacy"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user's name and password. None: to be asked for."""

    username: str | None = None
    password: str | None = field(repr=False, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What the profiles of clients and of servers have in common.

    Times are seconds, sizes bytes; 0 means off unless said otherwise.
    notes: directives that are not applied, with line and reason.
    """

    identity: Identity = field(default_factory=Identity)
    control_wrap: ControlWrapKey = field(default_factory=ControlWrapKey)
    tls: TlsOptions = field(default_factory=TlsOptions)
    data_ciphers: tuple[str, ...] = (
        "AES-256-GCM",
        "AES-128-GCM",
        "CHACHA20-POLY1305",
    )
    data_ciphers_fallback: str = ""
    auth: str = "SHA1"
    hand_window: int = 60
    tran_window: int = 3600
    tls_timeout: int = 2
    reneg_sec: int = 3600
    reneg_sec_min: int = 0
    reneg_bytes: int = -1
    reneg_pkts: int = 0
    ping: int = 0
    inactive: int = 0
    inactive_bytes: int = 0
    session_timeout: int = 0
    replay_window: int = 64
    replay_time: int = 15
    tun_mtu: int = 1500
    mssfix: int = -1
    mssfix_of: str = "mtu"
    max_packet_size: int = 1250
    sndbuf: int = 0
    rcvbuf: int = 0
    routes: tuple[tuple[IPv4Network | IPv6Network, str, int], ...] = ()
    dev: str = "tun"
    notes: tuple[tuple[int, str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ClientProfile(Profile):
    """Everything that a client needs; no file is read after this.

    auth_user_pass: None when the profile does not ask for a password.
    pull_filters: (accept, ignore or reject; prefix), in order.
    """

    remotes: tuple[Remote, ...]
    server_check: ServerCheck
    auth_user_pass: Credentials | None = None
    auth_retry: str = "none"
    auth_nocache: bool = False
    static_challenge: tuple[str, bool] | None = None
    static_challenge_concat: bool = False
    cipher: str = "BF-CBC"
    pull: bool = True
    route_nopull: bool = False
    pull_filters: tuple[tuple[str, str], ...] = ()
    remote_random: bool = False
    connect_retry: tuple[int, int] = (1, 30)
    connect_retry_max: int = 0
    ping_restart: int = 120
    ping_exit: int = 0
    tun_mtu_max: int = 1600
    link_mtu: int = 0
    fragment: int = 0
    ifconfig: tuple[str, str] | None = None
    ifconfig6: tuple[str, str] | None = None
    topology: str = ""
    redirect_gateway: tuple[str, ...] | None = None
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    block_ipv6: bool = False
    compression: str = ""
    allow_compression: str = "no"
    secret: tuple[bytes, int | None] | None = field(repr=False, default=None)
    push_peer_info: bool = False
    peer_info: tuple[tuple[str, str], ...] = ()


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
    device, in bytes. mssfix: 0 (off) or the size in bytes of what mssfix_of
    says (as Remote's). path_mtu: the largest inner packet that the path
    carries, 0 for any.
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
    mssfix_of: str = "mtu"
    path_mtu: int = 0
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
    auth_token: str = field(repr=False, default="")
    auth_token_user: str = ""
    refused: tuple[tuple[str, str], ...] = ()
