"""The control channel with one peer: session ids, wraps, key sessions.

It decides which packets belong to the session at all. Packets that the
wrap cannot authenticate, that carry another session id, or that acknowledge
another session change nothing here. Both sides use it.
Source: OpenVPN 2 ssl.c, tls_pre_decrypt and tls_process.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from qubes_vpn.crypto.control_wrap import (
    DYNAMIC_TLS_CRYPT_LABEL,
    ControlWrap,
    TlsCryptWrap,
    dynamic_tls_crypt_key,
)
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.prf import KEY2_SIZE
from qubes_vpn.crypto.tls import TlsSession
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.keying import (
    HandshakeDone,
    KeySession,
    KeysExchanged,
    KeySuite,
    Record,
    next_key_id,
)
from qubes_vpn.engine.reliable import ACKS_WITH_PAYLOAD, Frame, Reliable
from qubes_vpn.errors import LocalStateError, SessionError, UntrustedInputError
from qubes_vpn.wire.control import (
    ACKS_MAX,
    HEADER_SIZE,
    SESSION_ID_SIZE,
    ControlPacket,
)
from qubes_vpn.wire.key_method import KeyMethodMessage
from qubes_vpn.wire.opcode import Opcode, split_first_byte

# More than any peer sends; OpenVPN's buffer (ssl_common.h).
DATAGRAM_MAX: Final = 2048
# IPv6 and UDP headers count against max-packet-size, as in OpenVPN.
OUTER_HEADERS: Final = 48
_ACK_ARRAY: Final = 1 + 4 * ACKS_WITH_PAYLOAD + SESSION_ID_SIZE
_PACKET_ID: Final = 4

_CLIENT_RESETS: Final = frozenset(
    {
        Opcode.P_CONTROL_HARD_RESET_CLIENT_V2,
        Opcode.P_CONTROL_HARD_RESET_CLIENT_V3,
    }
)
_SERVER_RESETS: Final = frozenset({Opcode.P_CONTROL_HARD_RESET_SERVER_V2})
_HARD_RESETS: Final = _CLIENT_RESETS | _SERVER_RESETS


@dataclass(frozen=True, slots=True)
class PeerFound:
    """The peer's session id is known: it answered, or it called."""


@dataclass(frozen=True, slots=True)
class RenegotiationStarted:
    """A new key session began, by either side. The one before is gone."""

    key_id: int


ChannelEvent: TypeAlias = (
    PeerFound | HandshakeDone | KeysExchanged | Record | RenegotiationStarted
)


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """How a side speaks on the control channel; times in seconds.

    max_packet_size: of a control packet with its outer headers, in bytes.
    wkc_size: of the wrapped client key that our wrap appends, else 0.
    acks_max: in a packet of nothing but acks.
    """

    is_server: bool
    hand_window: float = 60
    tls_timeout: float = 2
    max_packet_size: int = 1250
    wkc_size: int = 0
    acks_max: int = ACKS_MAX


class ControlChannel:
    """One session; `outbox` and `events` are drained after every input.

    session_id: ours, 8 bytes. tls: makes the TLS connection of a new key
    session. hello: makes our key method 2 message. peer_session_id: given
    when the resets were exchanged without state (server with cookie).
    """

    def __init__(
        self,
        settings: ChannelSettings,
        session_id: bytes,
        wrap: ControlWrap,
        tls: Callable[[Now], TlsSession],
        hello: Callable[[], KeyMethodMessage],
        *,
        peer_session_id: bytes | None = None,
    ) -> None:
        self.settings = settings
        self.session_id = session_id
        self.peer_session_id = peer_session_id
        self.outbox: deque[bytes] = deque()
        self.events: deque[ChannelEvent] = deque()
        self._wrap = wrap
        self._later_wrap = wrap
        self._tls = tls
        self._hello = hello
        self._key: KeySession | None = None
        self._deadline = math.inf

    @property
    def key(self) -> KeySession:
        """The newest key session."""
        if self._key is None:
            raise LocalStateError("the session was not begun")
        return self._key

    @property
    def negotiating(self) -> bool:
        """Whether the newest key session is not complete yet."""
        return not self.key.established

    def begin(self, now: Now) -> None:
        """Start key 0: with our reset, unless resets were exchanged."""
        first: Opcode | None = Opcode.P_CONTROL_HARD_RESET_SERVER_V2
        if not self.settings.is_server:
            first = Opcode.P_CONTROL_HARD_RESET_CLIENT_V2
            if self.settings.wkc_size:
                first = Opcode.P_CONTROL_HARD_RESET_CLIENT_V3
        if self.peer_session_id is not None:
            first = None
        self._start_key(0, first, now)
        # a server speaks only when it is spoken to
        if not self.settings.is_server:
            self._flush(now)

    def renegotiate(self, now: Now) -> None:
        """Start the next key session; nothing if one is on its way."""
        if self.negotiating:
            return
        self._soft_reset(now)
        self._flush(now)

    def say(self, message: bytes, now: Now) -> None:
        """Send one control message inside TLS, when it may be sent."""
        self.key.say(message)
        self._flush(now)

    def use_dynamic_tls_crypt(self, static_key: bytes | None) -> None:
        """Wrap every later key session with a key from this TLS session.

        static_key: 256 bytes of the wrap in use, None with a plain one.
        """
        ekm = self.key.tls.export(DYNAMIC_TLS_CRYPT_LABEL, KEY2_SIZE)
        self._later_wrap = TlsCryptWrap(
            dynamic_tls_crypt_key(ekm, static_key),
            is_server=self.settings.is_server,
        )

    def data_keys(self, suite: KeySuite) -> DataKeys:
        """Derive the data keys of the newest key session."""
        assert self.peer_session_id is not None
        return self.key.data_keys(suite, self.session_id, self.peer_session_id)

    def receive(self, untrusted: bytes, now: Now) -> None:
        """Take one control datagram.

        Raises UntrustedInputError for a datagram that changed nothing, and
        SessionError when the session cannot go on.
        """
        if len(untrusted) > DATAGRAM_MAX:
            raise UntrustedInputError("oversize")
        if not untrusted:
            raise UntrustedInputError("empty")
        _, key_id = split_first_byte(untrusted[0])
        # costs nothing; for the wrap, this name alone proves nothing
        if (
            self.peer_session_id is not None
            and untrusted[1:HEADER_SIZE] != self.peer_session_id
        ):
            raise UntrustedInputError("foreign-session")
        packet = self._wrap_of(key_id).unwrap(untrusted, now.unix)
        self._check_opcode(packet)
        self._check_session(packet)
        self._find_key(packet, now)
        self.key.reliable.acknowledge(packet.acks)
        try:
            if packet.packet_id is not None:
                self.key.reliable.receive(
                    Frame(packet.packet_id, packet.opcode, packet.payload)
                )
            self._process()
        finally:
            # the acks of a duplicate, and the alert of a failure
            self._flush(now)

    def expire(self, now: Now) -> None:
        """Send again what is due. Raises SessionError "hand-window"."""
        if self.negotiating and now.mono >= self._deadline:
            raise SessionError("hand-window")
        self._flush(now)

    def deadline(self) -> float:
        """When to call expire, in mono seconds; inf: no need."""
        if self._key is None:
            return math.inf
        due = self._key.reliable.deadline()
        return min(due, self._deadline) if self.negotiating else due

    # --- which packets belong to the session

    def _check_opcode(self, packet: ControlPacket) -> None:
        wrong = _SERVER_RESETS if self.settings.is_server else _CLIENT_RESETS
        if packet.opcode in wrong:
            raise UntrustedInputError("wrong-role")
        if packet.opcode in _HARD_RESETS and (
            packet.key_id or packet.packet_id
        ):
            raise UntrustedInputError("bad-reset")

    def _check_session(self, packet: ControlPacket) -> None:
        """Let pass what is of this session; learn the peer's session id."""
        if packet.acks and packet.peer_session_id != self.session_id:
            raise UntrustedInputError("foreign-acks")
        if self.peer_session_id is not None:
            return
        if packet.opcode not in _HARD_RESETS:
            raise UntrustedInputError("no-session")
        # a server's reset answers ours: only who saw ours can acknowledge it
        if not self.settings.is_server and not packet.acks:
            raise UntrustedInputError("unasked-reset")
        self.peer_session_id = packet.session_id
        self.events.append(PeerFound())

    def _find_key(self, packet: ControlPacket, now: Now) -> None:
        """Make sure that the packet is for the newest key session."""
        if packet.key_id == self.key.key_id:
            return
        if (
            packet.opcode is not Opcode.P_CONTROL_SOFT_RESET_V1
            or packet.key_id != next_key_id(self.key.key_id)
            or packet.packet_id
            or self.negotiating
        ):
            raise UntrustedInputError("foreign-key-id")
        self._soft_reset(now)

    # --- key sessions

    def _soft_reset(self, now: Now) -> None:
        key_id = next_key_id(self.key.key_id)
        self._start_key(key_id, Opcode.P_CONTROL_SOFT_RESET_V1, now)
        self.events.append(RenegotiationStarted(key_id))

    def _start_key(self, key_id: int, first: Opcode | None, now: Now) -> None:
        settings = self.settings
        overhead = (
            OUTER_HEADERS
            + HEADER_SIZE
            + _ACK_ARRAY
            + _PACKET_ID
            + self._wrap_of(key_id).overhead
        )
        self._key = KeySession(
            key_id,
            self._tls(now),
            Reliable(
                timeout=settings.tls_timeout,
                hand_window=settings.hand_window,
                first_id=0 if first is not None else 1,
            ),
            self._hello,
            is_server=settings.is_server,
            first=first,
            payload_max=max(settings.max_packet_size - overhead, 1),
            wkc_size=settings.wkc_size if key_id == 0 else 0,
        )
        self._deadline = now.mono + settings.hand_window

    def _process(self) -> None:
        self.events.extend(self.key.process())

    def _wrap_of(self, key_id: int) -> ControlWrap:
        return self._later_wrap if key_id else self._wrap

    def _flush(self, now: Now) -> None:
        key = self.key
        for frame in key.reliable.due(now.mono):
            acks = key.reliable.take_acks(ACKS_WITH_PAYLOAD)
            self._send(frame.opcode, acks, now, frame.packet_id, frame.payload)
        while key.reliable.acks_pending:
            acks = key.reliable.take_acks(self.settings.acks_max)
            self._send(Opcode.P_ACK_V1, acks, now)

    def _send(
        self,
        opcode: Opcode,
        acks: tuple[int, ...],
        now: Now,
        packet_id: int | None = None,
        payload: bytes = b"",
    ) -> None:
        packet = ControlPacket(
            opcode,
            self.key.key_id,
            self.session_id,
            acks,
            self.peer_session_id if acks else None,
            packet_id,
            payload,
        )
        wrap = self._wrap_of(packet.key_id)
        self.outbox.append(wrap.wrap(packet, now.unix))
