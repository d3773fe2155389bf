"""Pulled options: what a server may set, parsed and merged."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

from qubes_vpn.config.model import (
    ClientProfile,
    Remote,
    TunnelRoute,
    TunnelSettings,
)
from qubes_vpn.config.push import Push
from qubes_vpn.config.routing import Outside, addresses, routing
from qubes_vpn.config.tunnel import cipher_name, framing, silence
from qubes_vpn.config.values import Address

__all__ = [
    "TunnelRoute",
    "TunnelSettings",
    "merge",
]

PEER_ID_MAX: Final = 0xFFFFFF
TOKEN_MAX: Final = 4096
# What every host must take (RFC 791), and what IPv6 needs of a device.
MTU_MIN: Final = 576
MTU6_MIN: Final = 1280
FLAGS: Final = frozenset({"tls-ekm", "dyn-tls-crypt", "cc-exit", "aead-epoch"})
MSSFIX_DEFAULT: Final = 1492  # of the outer packet, as OpenVPN 2.6


def merge(
    profile: ClientProfile,
    remote: Remote,
    options: Sequence[str],
    *,
    endpoint: Address | None = None,
    gateway: Address | None = None,
) -> TunnelSettings:
    """Make the tunnel's settings from the profile and all pushed options.

    endpoint: the server's address in use. gateway: of the uplink.
    Whatever is unknown, forbidden or malformed is in `refused`.
    Raises SessionError: "pull-filter" when a filter says reject, and
    "address" when the server gave us one of Qubes' own.
    """
    push = Push(profile, remote)
    push.take(options)
    outside = Outside(endpoint or _address_of(remote), gateway)
    return _settings(push, outside)


def _settings(push: Push, outside: Outside) -> TunnelSettings:
    """Put the settings together."""
    ours = push.profile
    fields: dict[str, Any] = addresses(push)
    fields |= routing(push, fields, outside)
    fields |= _negotiated(push)
    restart, leave = silence(
        push.last("ping-restart", "ping-exit"),
        ours.ping_restart,
        ours.ping_exit,
    )
    exit_notify = push.last("explicit-exit-notify")
    notices = push.remote.explicit_exit_notify
    if exit_notify and push.remote.proto == "udp":
        notices = exit_notify.value(0, 1)
    return TunnelSettings(
        mtu=_mtu(push, fields),
        **_mssfix(push),
        cipher=_cipher(push),
        digest=ours.auth,
        ping=push.value("ping", ours.ping),
        ping_restart=restart,
        ping_exit=leave,
        inactive=push.value("inactive", ours.inactive),
        inactive_bytes=push.value("inactive", ours.inactive_bytes, 1),
        session_timeout=push.value("session-timeout", ours.session_timeout),
        explicit_exit_notify=notices,
        compression=_compression(push),
        fragment=push.remote.fragment or ours.fragment,
        **fields,
        refused=push.refused,
    )


def _mtu(push: Push, fields: dict[str, Any]) -> int:
    own = push.remote.tun_mtu or push.profile.tun_mtu
    item = push.last("tun-mtu")
    if item is None:
        return own
    mtu = int(item.values[0])
    if mtu > max(own, push.profile.tun_mtu_max):
        push.refuse_item(item, "larger than tun-mtu-max")
        return own
    least = MTU6_MIN if fields["ifconfig6"] else MTU_MIN
    if mtu < least:
        push.refuse_item(item, f"smaller than {least}")
        return least
    return mtu


def _mssfix(push: Push) -> dict[str, Any]:
    remote, profile = push.remote, push.profile
    size, of = profile.mssfix, profile.mssfix_of
    if remote.mssfix is not None:
        size, of = remote.mssfix, remote.mssfix_of
    if size < 0:
        size, of = MSSFIX_DEFAULT, "mtu"
    return {"mssfix": size, "mssfix_of": of}


def _compression(push: Push) -> str:
    """Give the framing; what the profile forbids is only framed, not packed.

    Without it no packet would get through: servers that push `compress lz4`
    seldom compress.
    """
    item = push.last("compress", "comp-lzo")
    if item is None:
        return push.profile.compression
    try:
        return framing(item)
    except ValueError as error:
        push.refuse_item(item, str(error))
        return push.profile.compression


def _cipher(push: Push) -> str:
    """Give the cipher that was pushed; the engine settles whether it fits."""
    item = push.last("cipher")
    return cipher_name(item.values[0]) if item else push.profile.data_ciphers[0]


def _negotiated(push: Push) -> dict[str, Any]:
    flags: set[str] = set()
    for item in push.all("protocol-flags", "key-derivation"):
        flags.update(item.values)
        if not FLAGS.issuperset(item.values):
            # as OpenVPN does: the others hold
            push.refuse_item(item, "a flag that is not known")
    peer_id = push.value("peer-id", None)
    if peer_id is not None and peer_id > PEER_ID_MAX:
        push.refuse("peer-id", "over 24 bits")
        peer_id = None
    token = push.value("auth-token", "")
    return {
        "peer_id": peer_id,
        "tls_ekm": "tls-ekm" in flags,
        "dyn_tls_crypt": "dyn-tls-crypt" in flags,
        "cc_exit": "cc-exit" in flags,
        "aead_epoch": "aead-epoch" in flags,
        "auth_token": token if len(token) <= TOKEN_MAX else "",
        "auth_token_user": push.value("auth-token-user", ""),
    }


def _address_of(remote: Remote) -> Address | None:
    try:
        return ip_address(remote.host)
    except ValueError:
        return None
