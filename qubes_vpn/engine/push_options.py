"""What a server answers to a client's abilities: cipher, flags, options."""

from dataclasses import dataclass
from enum import IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from qubes_vpn.config.server_profile import ClientConfig, ServerProfile
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.messages import encode_push

# one control message with room for its NUL (OpenVPN 2 push.c)
PUSH_BUNDLE_SIZE: Final = 1024
_CONTINUATION_ROOM: Final = 40
_NCP2: Final = ("AES-256-GCM", "AES-128-GCM")


class IvProto(IntFlag):
    """Bits of IV_PROTO in the peer info. Source: OpenVPN 2 ssl.h."""

    DATA_V2 = 1 << 1
    REQUEST_PUSH = 1 << 2
    TLS_KEY_EXPORT = 1 << 3
    AUTH_PENDING_KW = 1 << 4
    NCP_P2P = 1 << 5
    DNS_OPTION = 1 << 6
    CC_EXIT_NOTIFY = 1 << 7
    AUTH_FAIL_TEMP = 1 << 8
    DYN_TLS_CRYPT = 1 << 9
    DATA_EPOCH = 1 << 10
    DNS_OPTION_V2 = 1 << 11
    PUSH_UPDATE = 1 << 12


_KNOWN: Final = sum(IvProto)
_NONE: Final = IvProto(0)


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a client said that it can do.

    ciphers: of IV_CIPHERS, in its order. mtu: of IV_MTU, 0 when not said.
    occ_cipher: of its options string, "" when not said.
    """

    proto: IvProto = _NONE
    ciphers: tuple[str, ...] = ()
    mtu: int = 0
    occ_cipher: str = ""

    @classmethod
    def read(cls, untrusted: dict[str, str], options: str) -> "Abilities":
        """Read the peer info and options string of a client."""
        ciphers = tuple(
            filter(None, untrusted.get("IV_CIPHERS", "").split(":"))
        )
        if not ciphers and untrusted.get("IV_NCP") == "2":
            ciphers = _NCP2
        return cls(
            IvProto(_number(untrusted.get("IV_PROTO", "")) & _KNOWN),
            ciphers,
            _number(untrusted.get("IV_MTU", "")),
            _option(options, "cipher"),
        )


@dataclass(frozen=True, slots=True)
class Lease:
    """The addresses of one client inside the tunnel."""

    address4: IPv4Address | None = None
    operand4: str = ""
    address6: IPv6Address | None = None
    prefix6: int = 64


def choose_cipher(profile: ServerProfile, abilities: Abilities) -> str:
    """Choose the first of ours that the client has too.

    Raises SessionError "no-shared-cipher".
    Source: OpenVPN 2 ssl_ncp.c, ncp_get_best_cipher.
    """
    offered = {cipher.upper() for cipher in abilities.ciphers}
    if not offered and abilities.occ_cipher:
        offered = {abilities.occ_cipher.upper()}
    for cipher in profile.data_ciphers:
        if cipher.upper() in offered:
            return cipher
    if not abilities.ciphers and profile.data_ciphers_fallback:
        return profile.data_ciphers_fallback
    raise SessionError("no-shared-cipher")


def push_options(
    profile: ServerProfile,
    client: ClientConfig,
    lease: Lease,
    abilities: Abilities,
    negotiated: tuple[str, ...],
) -> tuple[str, ...]:
    """List the options for one client.

    negotiated: what the session itself adds (cipher, peer-id, ...); no
    push-remove takes it away.
    """
    options = [*_server_options(profile, lease)]
    if not client.push_reset:
        options += profile.push
    options += client.push
    kept = [
        option
        for option in options
        if not any(_matches(option, p) for p in client.push_remove)
    ]
    if not abilities.proto & (IvProto.DNS_OPTION | IvProto.DNS_OPTION_V2):
        kept = [option for option in kept if not option.startswith("dns ")]
    if abilities.mtu:
        kept.append(f"tun-mtu {min(profile.tun_mtu, abilities.mtu)}")
    return (*kept, *_addresses(profile, lease), *negotiated)


def _matches(option: str, prefix: str) -> bool:
    """Tell whether push-remove with this prefix of words means the option."""
    return option == prefix or option.startswith(f"{prefix} ")


def _server_options(profile: ServerProfile, lease: Lease) -> list[str]:
    options = []
    if profile.network4 and lease.address4:
        own = profile.network4.network_address + 1
        if profile.topology == "subnet":
            options.append(f"route-gateway {own}")
        elif not profile.client_to_client:
            options.append(f"route {own}")
        options.append(f"topology {profile.topology}")
    interval, timeout = profile.keepalive
    if interval:
        options.append(f"ping {interval}")
        options.append(f"ping-restart {timeout}")
    if profile.inactive:
        options.append(f"inactive {profile.inactive} {profile.inactive_bytes}")
    if profile.session_timeout:
        options.append(f"session-timeout {profile.session_timeout}")
    return options


def _addresses(profile: ServerProfile, lease: Lease) -> list[str]:
    options = []
    if lease.address6 and profile.network6:
        own = profile.network6.network_address + 1
        options.append(f"ifconfig-ipv6 {lease.address6}/{lease.prefix6} {own}")
    if lease.address4:
        options.append(f"ifconfig {lease.address4} {lease.operand4}")
    return options


def push_messages(options: tuple[str, ...]) -> list[bytes]:
    """Make PUSH_REPLY messages, several when they do not fit into one.

    Raises SessionError "push-too-long" when one option alone does not.
    """
    room = PUSH_BUNDLE_SIZE - len("PUSH_REPLY") - _CONTINUATION_ROOM
    bundles: list[list[str]] = [[]]
    used = 0
    for option in options:
        size = len(option.encode()) + 1
        if size > room:
            raise SessionError("push-too-long", option[:40])
        if used + size > room:
            bundles.append([])
            used = 0
        bundles[-1].append(option)
        used += size
    if len(bundles) == 1:
        return [encode_push("PUSH_REPLY", tuple(bundles[0]))]
    last = len(bundles) - 1
    return [
        encode_push("PUSH_REPLY", tuple(bundle), 1 if i == last else 2)
        for i, bundle in enumerate(bundles)
    ]


def _number(untrusted: str) -> int:
    """Read a decimal number of sane length; anything else is 0."""
    if untrusted.isascii() and untrusted.isdigit() and len(untrusted) <= 9:
        return int(untrusted)
    return 0


def _option(options: str, name: str) -> str:
    for option in options.split(","):
        word, _, value = option.partition(" ")
        if word == name:
            return value.strip()
    return ""
