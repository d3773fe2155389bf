"""First packets: answered without keeping anything about who sent them.

A server's session id is a cookie: a MAC over the client's session id, its
address and a time slot. Nothing is allocated before a client has sent the
cookie back from the address that it names, so that forged packets cost no
memory and no TLS. Source: OpenVPN 2 ssl_pkt.c, calculate_session_id_hmac.
"""

import hmac
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from qubes_vpn.wire.control import SESSION_ID_SIZE

COOKIE_KEY_SIZE: Final = 32
# Slots of half the hand-window: a cookie lives one to one and a half of it.
_SLOTS_BACK: Final = 2


@dataclass(frozen=True, slots=True)
class Source:
    """Where a packet came from, and where its answer goes.

    socket: the number of our listening socket; of a TCP connection it is
    a number of its own. local: the address of ours that the packet was
    sent to, when it is known.
    """

    socket: int
    address: IPv4Address | IPv6Address
    port: int
    local: IPv4Address | IPv6Address | None = None

    def packed(self) -> bytes:
        """Give what a cookie is bound to: address and port."""
        return self.address.packed + self.port.to_bytes(2)


class Cookies:
    """Makes and checks session ids that prove where a client is."""

    def __init__(self, key: bytes, hand_window: int) -> None:
        assert len(key) == COOKIE_KEY_SIZE
        self._key = key
        self._slot_length = (hand_window + 1) // 2

    def make(self, client_sid: bytes, source: Source, now: float) -> bytes:
        """Give the session id to answer with. now: mono seconds."""
        return self._cookie(client_sid, source, self._slot(now))

    def check(
        self, server_sid: bytes, client_sid: bytes, source: Source, now: float
    ) -> bool:
        """Tell whether we made this id for this client, not long ago."""
        slot = self._slot(now)
        fits = False
        for age in range(_SLOTS_BACK + 1):
            cookie = self._cookie(client_sid, source, slot - age)
            fits |= hmac.compare_digest(cookie, server_sid)
        return fits

    def _slot(self, now: float) -> int:
        return int(now) // self._slot_length

    def _cookie(self, client_sid: bytes, source: Source, slot: int) -> bytes:
        content = slot.to_bytes(8, signed=True) + client_sid + source.packed()
        return hmac.digest(self._key, content, sha256)[:SESSION_ID_SIZE]


class RateLimit:
    """At most `count` in a period of `seconds`; count 0: no limit.

    Source: OpenVPN 2 reflect_filter.c.
    """

    def __init__(self, count: int, seconds: int) -> None:
        self._count = count
        self._seconds = seconds
        self._since = float("-inf")
        self._used = 0

    def allow(self, now: float) -> bool:
        """Count one more; False when it is too many. now: mono seconds."""
        if not self._count:
            return True
        if now - self._since >= self._seconds:
            self._since = now
            self._used = 0
        self._used += 1
        return self._used <= self._count

    def give_back(self) -> None:
        """Take one back: it turned out to be a real client."""
        self._used = max(self._used - 1, 0)


class SourceLimits:
    """A limit for each source network, in bounded memory.

    Networks are /24 or /56. They share `slots` counters by a keyed hash:
    whoever sends from everywhere fills counters, and not memory.
    """

    def __init__(
        self, key: bytes, count: int, seconds: int, slots: int = 1024
    ) -> None:
        self._key = key
        self._limits = [RateLimit(count, seconds) for _ in range(slots)]

    def of(self, source: Source) -> RateLimit:
        """Give the limit that this source shares."""
        network = source.address.packed[
            : 3 if source.address.version == 4 else 7
        ]
        digest = hmac.digest(self._key, network, sha256)
        return self._limits[int.from_bytes(digest[:4]) % len(self._limits)]
