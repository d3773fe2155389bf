"""The reliability layer: packets in order, acknowledged, sent again.

One object serves both directions of one key negotiation. It knows nothing
of sessions, wraps or TLS, and does not know which side it is on.
Source: openvpn-rfc, reliability layer; OpenVPN 2 reliable.c.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.control import ACKS_MAX
from qubes_vpn.wire.opcode import Opcode

SEND_WINDOW: Final = 6
RECEIVE_WINDOW: Final = 12
# How many acks a packet with a payload carries (OpenVPN 2.6 ssl.h).
ACKS_WITH_PAYLOAD: Final = 4
# So many later packets were acknowledged: this one is lost, send it again.
EARLY_RESEND: Final = 3
# A cap of hand-window/12 gives a lost packet a dozen tries in the window:
# without one, a path that comes back after 30 s is used after 60 s.
BACKOFF_SHARE: Final = 12


@dataclass(frozen=True, slots=True)
class Frame:
    """A packet of this layer: message number, opcode, payload."""

    packet_id: int
    opcode: Opcode
    payload: bytes = field(repr=False)


@dataclass(slots=True)
class _InFlight:
    frame: Frame
    next_try: float
    timeout: float
    later_acks: int = 0


class Reliable:
    """Send and receive windows of one key negotiation.

    timeout: seconds before the first retransmission (tls-timeout).
    hand_window: seconds that the negotiation may take; bounds the backoff.
    first_id: the message number of the first packet of both sides; 1 when
    the resets were exchanged without state (server, HMAC cookie).
    """

    def __init__(
        self, *, timeout: float, hand_window: float, first_id: int = 0
    ) -> None:
        self._timeout = timeout
        self._timeout_max = min(
            max(timeout, hand_window / BACKOFF_SHARE), hand_window / 2
        )
        self._waiting: deque[tuple[Opcode, bytes]] = deque()
        self._in_flight: dict[int, _InFlight] = {}
        self._send_id = first_id
        self._receive_id = first_id
        self._received: dict[int, Frame] = {}
        self._acks: list[int] = []
        self._acked: deque[int] = deque(maxlen=ACKS_MAX)

    @property
    def next_send_id(self) -> int:
        """The message number that the next new packet gets."""
        return self._send_id

    @property
    def empty(self) -> bool:
        """Whether everything queued was sent and acknowledged."""
        return not self._in_flight and not self._waiting

    @property
    def acks_pending(self) -> bool:
        """Whether something received was not acknowledged yet."""
        return bool(self._acks)

    def queue(self, opcode: Opcode, payload: bytes) -> None:
        """Take a packet to send as soon as the window has room."""
        self._waiting.append((opcode, payload))

    def due(self, now: float) -> Iterator[Frame]:
        """Yield what must be sent now: new packets, and those sent again."""
        self._fill_window(now)
        for entry in self._in_flight.values():
            if entry.next_try <= now or entry.later_acks >= EARLY_RESEND:
                entry.next_try = now + entry.timeout
                entry.timeout = min(entry.timeout * 2, self._timeout_max)
                entry.later_acks = 0
                yield entry.frame

    def _fill_window(self, now: float) -> None:
        while self._waiting:
            oldest = next(iter(self._in_flight), self._send_id)
            if self._send_id - oldest >= SEND_WINDOW:
                return
            opcode, payload = self._waiting.popleft()
            frame = Frame(self._send_id, opcode, payload)
            self._in_flight[self._send_id] = _InFlight(
                frame, now, self._timeout
            )
            self._send_id += 1

    def deadline(self) -> float:
        """When `due` has something again, in mono seconds; inf: never."""
        return min(
            (entry.next_try for entry in self._in_flight.values()),
            default=math.inf,
        )

    def acknowledge(self, untrusted_ids: Iterable[int]) -> None:
        """Take the peer's acks; ids that are not in flight mean nothing."""
        for packet_id in untrusted_ids:
            if self._in_flight.pop(packet_id, None) is None:
                continue
            for earlier, entry in self._in_flight.items():
                if earlier < packet_id:
                    entry.later_acks += 1

    def receive(self, untrusted: Frame) -> None:
        """Take a packet of the peer; one seen before is acked again.

        Raises UntrustedInputError "outside-window" for a message number
        that the window cannot hold; it is not acknowledged.
        """
        packet_id = untrusted.packet_id
        if packet_id >= self._receive_id + RECEIVE_WINDOW:
            raise UntrustedInputError("outside-window")
        if packet_id >= self._receive_id:
            self._received.setdefault(packet_id, untrusted)
        if packet_id not in self._acks:
            self._acks.append(packet_id)

    def take(self) -> Frame | None:
        """Return the next packet in order, or None until it is there."""
        frame = self._received.pop(self._receive_id, None)
        if frame is not None:
            self._receive_id += 1
        return frame

    def take_acks(self, limit: int) -> tuple[int, ...]:
        """Return the acks for one packet, `limit` at most.

        New ones first; then the last ones again, for the case that the
        packet with them was lost.
        """
        new, self._acks = self._acks[:limit], self._acks[limit:]
        for packet_id in new:
            if packet_id in self._acked:
                self._acked.remove(packet_id)
            self._acked.append(packet_id)
        repeated = (i for i in reversed(self._acked) if i not in new)
        return (*new, *repeated)[:limit]
