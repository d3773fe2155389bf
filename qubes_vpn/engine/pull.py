"""Collects pushed options, and decides the cipher.

Source: OpenVPN 2 push.c, options_util.c, ssl_ncp.c.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.config.model import ClientProfile
from qubes_vpn.engine.peer_info import PlaneFeatures, offered_ciphers
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.messages import PushReply, PushUpdate

MESSAGES_MAX: Final = 64
OCTETS_MAX: Final = 64 * 1024
MORE: Final = 2

# What PUSH_UPDATE may change (OpenVPN 2.7 options_util.c).
UPDATABLE: Final = frozenset(
    {
        "block-ipv6",
        "block-outside-dns",
        "dhcp-option",
        "dns",
        "ifconfig",
        "ifconfig-ipv6",
        "keepalive",
        "redirect-gateway",
        "redirect-private",
        "route",
        "route-gateway",
        "route-ipv6",
        "route-metric",
        "topology",
        "tun-mtu",
    }
)


@dataclass(slots=True)
class PushCollector:
    """Joins PUSH_REPLY, or PUSH_UPDATE, messages with continuation."""

    _options: list[str] = field(default_factory=list, repr=False)
    _messages: int = 0
    _octets: int = 0

    def add(self, message: PushReply | PushUpdate) -> tuple[str, ...] | None:
        """Take a message; return all options once the last one is there.

        Raises SessionError "push-too-long": 64 messages or 64 KiB.
        """
        self._messages += 1
        self._octets += sum(map(len, message.options))
        if self._messages > MESSAGES_MAX or self._octets > OCTETS_MAX:
            raise SessionError("push-too-long")
        self._options.extend(message.options)
        if message.continuation == MORE:
            return None
        whole = tuple(self._options)
        self._options.clear()
        self._messages = self._octets = 0
        return whole


def option_name(option: str) -> str:
    """Return the directive of a pushed option."""
    return option.lstrip().partition(" ")[0]


def apply_update(
    options: Sequence[str], update: Sequence[str]
) -> tuple[str, ...]:
    """Return the options after a PUSH_UPDATE: all of it, or none.

    "-name" removes; "?" marks what may be ignored; a name that is there
    replaces every earlier option of that name.
    Raises SessionError "bad-push" for what must be applied and cannot be.
    """
    kept = list(options)
    added: list[str] = []
    for entry in update:
        remove, optional, option = _flags(entry.lstrip())
        name = option_name(option)
        if name not in UPDATABLE:
            if optional:
                continue
            raise SessionError("bad-push", f"PUSH_UPDATE of {name!r}")
        kept = [one for one in kept if option_name(one) != name]
        if remove:
            added = [one for one in added if option_name(one) != name]
        else:
            added.append(option)
    return (*kept, *added)


def _flags(entry: str) -> tuple[bool, bool, str]:
    remove = entry.startswith("-")
    entry = entry.removeprefix("-")
    optional = entry.startswith("?")
    return remove, optional, entry.removeprefix("?")


def choose_cipher(
    profile: ClientProfile,
    features: PlaneFeatures,
    options: Sequence[str],
    peer_options: str,
) -> str:
    """Return the data cipher: pushed, the peer's own, or the fallback.

    peer_options: the peer's options string; a server without NCP says its
    cipher there. Raises SessionError "cipher-refused".
    """
    offered = offered_ciphers(profile, features)
    fallback = profile.data_ciphers_fallback
    for option in reversed(options):
        if option_name(option) == "cipher":
            pushed = option.split()[-1].upper()
            if pushed in offered or pushed == fallback:
                return pushed
            raise _refused(pushed, offered)
    theirs = occ_cipher(peer_options)
    if theirs in offered or (theirs and theirs == fallback):
        return theirs
    if not theirs and fallback:
        return fallback
    raise _refused(theirs or "one that it does not name", offered)


def occ_cipher(peer_options: str) -> str:
    """Return the cipher of an options string, or ""."""
    for part in peer_options.split(","):
        name, _, value = part.partition(" ")
        if name == "cipher":
            return value.upper()
    return ""


def _refused(cipher: str, offered: Sequence[str]) -> SessionError:
    return SessionError(
        "cipher-refused",
        f"the server uses {cipher[:32]}, data-ciphers has {':'.join(offered)}",
    )
