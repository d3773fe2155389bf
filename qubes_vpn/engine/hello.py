"""First packets: answered without keeping anything about who sent them.

A server's session id is a cookie: a MAC over the client's session id, its
address and a time slot. Nothing is allocated before a client has sent the
cookie back from the address that it names, so that forged packets cost no
memory and no TLS. Source: OpenVPN 2 ssl_pkt.c, calculate_session_id_hmac.
"""

import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from qubes_vpn.config.model import ControlWrapKey
from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.crypto.control_wrap import (
    EARLY_NEG_MASK,
    EARLY_NEG_START,
    METADATA_USER,
    ControlWrap,
    PlainWrap,
    TlsAuthWrap,
    TlsCryptV2ServerWrap,
    TlsCryptWrap,
    metadata_time,
    packet_id_of,
    split_wkc,
    unwrap_client_key,
)
from qubes_vpn.engine.events import Now
from qubes_vpn.errors import (
    AuthenticationError,
    MalformedPacketError,
    UntrustedInputError,
)
from qubes_vpn.wire.control import (
    HEADER_SIZE,
    SESSION_ID_SIZE,
    ControlPacket,
    encode_early_negotiation,
)
from qubes_vpn.wire.opcode import Opcode, split_first_byte

COOKIE_KEY_SIZE: Final = 32
_DAY: Final = 86400
_USER: Final = bytes([METADATA_USER])
_RESETS: Final = frozenset(
    {
        Opcode.P_CONTROL_HARD_RESET_CLIENT_V2,
        Opcode.P_CONTROL_HARD_RESET_CLIENT_V3,
    }
)
_WKC_OPCODES: Final = frozenset(
    {Opcode.P_CONTROL_HARD_RESET_CLIENT_V3, Opcode.P_CONTROL_WKC_V1}
)
_FIRST_OPCODES: Final = (
    _RESETS | _WKC_OPCODES | {Opcode.P_CONTROL_V1, Opcode.P_ACK_V1}
)
# Slots of half the hand-window: a cookie lives one to one and a half of it.
_SLOTS_BACK: Final = 2


@dataclass(frozen=True, slots=True)
class Source:
    """Where a packet came from, and where its answer goes.

    socket: the number of our listening socket; a TCP connection has a
    number of its own.
    """

    socket: int
    address: IPv4Address | IPv6Address
    port: int

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


class ReplyBudget:
    """Who may be answered: a server must not multiply others' traffic.

    Each source network, /24 or /56, gets `count` answers in a period. They
    share slots by a keyed hash: whoever sends from everywhere fills counters,
    and not memory. All answers together, beyond the first `count`, have
    fewer bytes than all that asked; a real client asks again.
    """

    def __init__(
        self, key: bytes, count: int, seconds: int, slots: int = 4096
    ) -> None:
        self._key = key
        self._count = count
        self._seconds = seconds
        self._since = float("-inf")
        self._slots = bytearray(2 * slots)
        self._answers = 0
        self._bytes_in = 0
        self._bytes_out = 0

    def allow(
        self, source: Source, asked: int, answer: int, now: float
    ) -> bool:
        """Tell whether to answer `asked` bytes with `answer` bytes."""
        if not self._count:
            return True
        if now - self._since >= self._seconds:
            self._since = now
            self._slots = bytearray(len(self._slots))
            self._answers = self._bytes_in = self._bytes_out = 0
        self._bytes_in += asked
        slot = self._slot(source)
        used = int.from_bytes(self._slots[slot : slot + 2])
        if used >= min(self._count, 0xFFFF):
            return False
        balanced = self._bytes_out + answer < self._bytes_in
        if not balanced and self._answers >= self._count:
            return False
        self._slots[slot : slot + 2] = (used + 1).to_bytes(2)
        self._answers += 1
        self._bytes_out += answer
        return True

    def give_back(self, source: Source) -> None:
        """Take one answer back: it went to a real client."""
        slot = self._slot(source)
        used = int.from_bytes(self._slots[slot : slot + 2])
        self._slots[slot : slot + 2] = max(used - 1, 0).to_bytes(2)
        self._answers = max(self._answers - 1, 0)

    def _slot(self, source: Source) -> int:
        size = 3 if source.address.version == 4 else 7
        network = source.address.packed[:size]
        digest = hmac.digest(self._key, network, sha256)
        return int.from_bytes(digest[:4]) % (len(self._slots) // 2) * 2


class WrapKeys:
    """Finds the key that a first packet is wrapped with.

    One for packets of old (opcodes 7, 4, 5) and, with tls-crypt-v2, one for
    those that bring their key (opcodes 10, 11).
    """

    def __init__(
        self, profile: ServerProfile, denied: frozenset[bytes]
    ) -> None:
        """denied: user metadata of client keys that are not let in."""
        self._wrap = profile.control_wrap
        self._server_key = profile.tls_crypt_v2
        self._max_age = profile.tls_crypt_v2_max_age
        self._denied = denied

    def shared(self) -> "WrapKey":
        """Give the key that all clients share.

        Raises UntrustedInputError "needs-tls-crypt-v2" where there is none.
        """
        wrap = self._wrap
        if wrap.kind == "plain" and self._server_key:
            raise UntrustedInputError("needs-tls-crypt-v2")
        return WrapKey(wrap)

    def of_client(self, untrusted_wkc: bytes, now: Now) -> "WrapKey":
        """Give the key that the client brought.

        Raises AuthenticationError "bad-wkc", "denied-wkc" or "old-wkc".
        """
        if not self._server_key:
            raise UntrustedInputError("no-tls-crypt-v2")
        key, metadata = unwrap_client_key(self._server_key, untrusted_wkc)
        if metadata[:1] == _USER and metadata[1:] in self._denied:
            raise AuthenticationError("denied-wkc")
        made = metadata_time(metadata)
        if self._max_age and (
            made is None or now.unix - made > self._max_age * _DAY
        ):
            raise AuthenticationError("old-wkc")
        return WrapKey(ControlWrapKey("tls-crypt-v2", key))


@dataclass(frozen=True, slots=True)
class WrapKey:
    """A key that a control wrap is made with."""

    settings: ControlWrapKey

    @property
    def static_key(self) -> bytes | None:
        """The 256 bytes, None of a plain wrap."""
        return self.settings.key if self.settings.kind != "plain" else None

    def wrap(self, start: int) -> ControlWrap:
        """Make a wrap that has seen nothing.

        start: the replay packet id before the first one sent.
        """
        given = self.settings
        match given.kind:
            case "tls-auth":
                return TlsAuthWrap(
                    given.key, given.direction, given.digest, start=start
                )
            case "tls-crypt":
                return TlsCryptWrap(given.key, is_server=True, start=start)
            case "tls-crypt-v2":
                return TlsCryptV2ServerWrap(given.key, start=start)
            case _:
                return PlainWrap()


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this to where the packet came from; keep nothing."""

    datagram: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """A session begins; the packet is still to be given to it.

    wrap: with nothing received yet. static_key: its 256 bytes, None of a
    plain one. skip_reset: the resets were exchanged without state, so the
    session's first message number is 1.
    """

    wrap: ControlWrap
    static_key: bytes | None = field(repr=False)
    client_sid: bytes
    server_sid: bytes
    skip_reset: bool


class Greeter:
    """Judges packets that belong to no session."""

    def __init__(
        self,
        profile: ServerProfile,
        entropy: Callable[[int], bytes],
        denied: frozenset[bytes] = frozenset(),
    ) -> None:
        self._keys = WrapKeys(profile, denied)
        self._entropy = entropy
        self._force_cookie = profile.force_cookie
        self._cookies = Cookies(entropy(COOKIE_KEY_SIZE), profile.hand_window)
        self._budget = ReplyBudget(
            entropy(COOKIE_KEY_SIZE), *profile.connect_freq_initial
        )

    def judge(
        self, untrusted: bytes, source: Source, now: Now
    ) -> Answer | Welcome:
        """Judge a packet. Raises UntrustedInputError to have it dropped."""
        if len(untrusted) < HEADER_SIZE:
            raise MalformedPacketError("truncated-header", len(untrusted))
        opcode, key_id = split_first_byte(untrusted[0])
        if opcode not in _FIRST_OPCODES:
            raise UntrustedInputError("no-session")
        if key_id:
            raise UntrustedInputError("bad-key-id")
        if opcode in _WKC_OPCODES:
            _, wkc = split_wkc(untrusted)
            key = self._keys.of_client(wkc, now)
        else:
            key = self._keys.shared()
        # one to look with: what it remembers of replays is thrown away
        packet = key.wrap(0).unwrap(untrusted, now.unix)
        if packet.packet_id is not None and packet.packet_id > 1:
            raise UntrustedInputError("no-session")
        if opcode in _RESETS:
            return self._reset(packet, untrusted, source, now, key)
        server_sid = packet.peer_session_id
        if server_sid is None or any(ack > 1 for ack in packet.acks):
            raise UntrustedInputError("no-session")
        if not self._cookies.check(
            server_sid, packet.session_id, source, now.mono
        ):
            raise UntrustedInputError("bad-cookie")
        self._budget.give_back(source)
        # packet id 1 was that of the reset
        return Welcome(
            key.wrap(1),
            key.static_key,
            packet.session_id,
            server_sid,
            skip_reset=True,
        )

    def _reset(
        self,
        packet: ControlPacket,
        untrusted: bytes,
        source: Source,
        now: Now,
        key: WrapKey,
    ) -> Answer | Welcome:
        if packet.packet_id != 0:
            raise UntrustedInputError("reset-not-first")
        resend_wkc = packet.opcode is Opcode.P_CONTROL_HARD_RESET_CLIENT_V3
        early = packet_id_of(untrusted) & EARLY_NEG_MASK == EARLY_NEG_START
        if resend_wkc and not early:
            return self._stateful(packet, key)
        answer = key.wrap(0).wrap(
            ControlPacket(
                Opcode.P_CONTROL_HARD_RESET_SERVER_V2,
                0,
                self._cookies.make(packet.session_id, source, now.mono),
                (0,),
                packet.session_id,
                0,
                encode_early_negotiation(resend_wkc=resend_wkc),
            ),
            now.unix,
        )
        if not self._budget.allow(
            source, len(untrusted), len(answer), now.mono
        ):
            raise UntrustedInputError("too-many-resets")
        return Answer(answer)

    def _stateful(self, packet: ControlPacket, key: WrapKey) -> Welcome:
        """Begin at once: a client that cannot send its key again."""
        if self._force_cookie:
            raise UntrustedInputError("cookie-forced")
        sid = self._entropy(SESSION_ID_SIZE)
        return Welcome(
            key.wrap(0),
            key.static_key,
            packet.session_id,
            sid,
            skip_reset=False,
        )
