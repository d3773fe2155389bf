"""The values that a server's profile becomes: frozen, checked, no text."""

from dataclasses import dataclass, field
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
)
from typing import Final

from qubes_vpn.config.model import Profile, ServerCheck

NAME_MAX: Final = 128  # characters of a client's or a user's name


@dataclass(frozen=True, slots=True)
class Listen:
    """One `local`: where the server listens.

    address: "" for all. proto: udp or tcp. family: 4, 6 or 0 (both).
    """

    address: str = ""
    port: int = 1194
    proto: str = "udp"
    family: int = 0


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """`auth-gen-token`. Times in seconds; lifetime 0: as long as it lives.

    secret: 128 bytes of auth-gen-token-secret; empty: made at the start.
    external_auth: the password back end checks what a token says too.
    """

    lifetime: int = 0
    renewal: int = 0
    external_auth: bool = False
    secret: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """One file of client-config-dir: what is different for this client.

    ifconfig4, ifconfig6: its own address, and the other operand.
    push_remove: prefixes of options that are not pushed to it.
    push_reset: nothing of the profile's `push` is.
    username: what it is called once it is in; "": as it logged in.
    """

    disable: bool = False
    ifconfig4: tuple[IPv4Address, str] | None = None
    ifconfig6: tuple[IPv6Address, int] | None = None
    iroutes: tuple[IPv4Network | IPv6Network, ...] = ()
    push: tuple[str, ...] = ()
    push_remove: tuple[str, ...] = ()
    push_reset: bool = False
    username: str = ""


@dataclass(frozen=True, slots=True)
class ServerProfile(Profile):
    """Everything that a server needs, but for files that may change.

    client_check: what makes a client the right one (its `name` is unused).
    verify_client_cert: none, optional or require. control_wrap: plain,
    tls-auth or tls-crypt. tls_crypt_v2: the server key (128 bytes), beside
    it; alone when `control_wrap` is plain. network4, network6: of `server`
    and `server-ipv6`; the server has the first address. pool4, pool6: first
    and last address that clients get; None: whatever is free.
    password_file, pam_service, client_config_dir, crl_file, persist_file,
    status_file: names that the runtime opens; "" when not used. crl_file has
    / at its end when it is a folder. push_constraint: where addresses of
    ifconfig-push must be.
    keepalive: what clients get pushed as ping and ping-restart; ping and
    ping_restart are the server's own (keepalive sets them, and doubles the
    second).
    """

    listens: tuple[Listen, ...] = (Listen(),)
    client_check: ServerCheck = field(default_factory=ServerCheck)
    verify_client_cert: str = "require"
    tls_crypt_v2: bytes = field(repr=False, default=b"")
    force_cookie: bool = False
    tls_crypt_v2_max_age: int = 0
    force_tls_key_material_export: bool = False
    topology: str = "subnet"
    network4: IPv4Network | None = None
    network6: IPv6Network | None = None
    pool4: tuple[IPv4Address, IPv4Address] | None = None
    pool6: tuple[IPv6Address, IPv6Address] | None = None
    persist_file: str = ""
    persist_seconds: int = 600
    client_config_dir: str = ""
    ccd_exclusive: bool = False
    duplicate_cn: bool = False
    max_clients: int = 1024
    max_routes_per_client: int = 256
    client_to_client: bool = False
    push: tuple[str, ...] = ()
    push_constraint: IPv4Network | None = None
    username_as_common_name: bool = False
    password_file: str = ""
    pam_service: str = ""
    auth_user_pass_optional: bool = False
    auth_gen_token: TokenOptions | None = None
    crl_file: str = ""
    connect_freq: tuple[int, int] = (0, 0)
    connect_freq_initial: tuple[int, int] = (100, 10)
    keepalive: tuple[int, int] = (0, 0)
    ping_restart: int = 0
    explicit_exit_notify: int = 0
    status_file: str = ""
    status_seconds: int = 60
    status_version: int = 1

    @property
    def wants_password(self) -> bool:
        """Whether clients are asked for a user name and password."""
        return bool(self.password_file or self.pam_service)
