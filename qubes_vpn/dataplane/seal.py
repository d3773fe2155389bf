"""Sealing many packets at a stride, and sending them in one call.

A run is a row of datagrams of equal size in one buffer, which UDP_SEGMENT
sends in one call; the last may be shorter. Each is sealed where it lies:

    [length 2, streams only] header 1 or 4 | packet id 4 | tag 16 | content

The cipher writes its tag after the content, that is over the first bytes of
the next datagram. So packets are sealed in ascending order, additional data
and nonces are kept apart, and one copy each moves all tags and all headers
into their places at the end.
"""

from collections import deque
from typing import Final

import numpy as np

from qubes_vpn.crypto.aead import TAG_SIZE
from qubes_vpn.dataplane.link import DATAGRAM_MAX, DatagramLink, StreamLink
from qubes_vpn.dataplane.segment import Array, SuperPacket
from qubes_vpn.engine.data_channel import OVERHEAD_MAX, DataChannel
from qubes_vpn.engine.data_key import PACKET_ID_MAX, PACKET_ID_SIZE, AeadKey
from qubes_vpn.wire.framing import LENGTH_SIZE

# What one run may have, in datagrams and in bytes: two super-packets.
RUN_MAX: Final = 128
RUN_SIZE_MAX: Final = 2 * 65_536
# Layout of a row of `_ids`: header, right-aligned | packet id | implicit IV.
_ID_AT: Final = 4
_IDS_WIDTH: Final = 16
_CACHED_SIZES: Final = 16
_NUMBERS: Final = np.arange(RUN_MAX, dtype=np.int64)

Views = list[memoryview]


class Sealer:
    """Collects packets into runs, sealed, and sends them.

    `flush` must be called before anything else is sent on the link.
    """

    def __init__(
        self, link: DatagramLink | StreamLink, channel: DataChannel
    ) -> None:
        self._link = link
        self._channel = channel
        self._prefix = LENGTH_SIZE if link.stream else 0
        # A packet may begin at the end of the longest run, and the tags of a
        # block are read one datagram further on.
        self._data = np.zeros(RUN_SIZE_MAX + 2 * DATAGRAM_MAX, np.uint8)
        self._view = self._data.data
        self._ids = np.zeros((RUN_MAX, _IDS_WIDTH), np.uint8)
        wire_ids = self._ids[:, _ID_AT : _ID_AT + PACKET_ID_SIZE]
        self._wire_ids = wire_ids.view(">u4")[:, 0]
        self._nonces: Views = [row[_ID_AT:].data for row in self._ids]
        self._aads: Views = []
        self._key: AeadKey | None = None
        self._slots: dict[int, tuple[Views, Views]] = {}
        self._loose = memoryview(bytearray(DATAGRAM_MAX + OVERHEAD_MAX))
        self._row = np.zeros(DATAGRAM_MAX, np.uint8)
        self._end = 0
        self._size = 0
        self._count = 0
        self._last = False
        self.link_bytes = 0

    def add(self, payload: memoryview, now: float) -> bool:
        """Seal one packet into the run; False when it was refused."""
        key = self._channel.primary
        if not isinstance(key, AeadKey) or key.style:
            return self._send_loose(payload, now)
        overhead = len(key.header) + PACKET_ID_SIZE + TAG_SIZE
        size = self._prefix + overhead + len(payload)
        self._make_room(size, shorter=True)
        begin = self._end
        sealed = self._channel.seal_into(
            payload, self._view[begin + self._prefix :], now
        )
        if not sealed:
            return False
        if self._prefix:
            self._view[begin : begin + LENGTH_SIZE] = sealed.to_bytes(
                LENGTH_SIZE
            )
        self.link_bytes += sealed
        self._added(size, 1)
        return True

    def add_segments(self, packet: SuperPacket, now: float) -> int:
        """Seal all segments of a super-packet; return how many were sent."""
        key = self._channel.primary
        if not isinstance(key, AeadKey) or key.style:
            return self._add_singly(packet, now)
        done = 0
        while done < packet.whole:
            count = self._seal_some(key, packet, done, now)
            if not count:
                self._channel.drop("packet-ids-used-up", packet.whole - done)
                return done
            done += count
        if packet.tail:
            size = packet.fill(self._row, 0, 0, packet.whole, 1)
            done += self.add(self._row[:size].data, now)
        return done

    def flush(self) -> None:
        """Send the run."""
        if not self._count:
            return
        run = self._view[: self._end]
        if isinstance(self._link, StreamLink):
            self._link.send_frames(run)
        else:
            self._link.send_run(run, self._size, self._count)
        self._end = self._count = self._size = 0
        self._last = False

    def _send_loose(self, payload: memoryview, now: float) -> bool:
        """Send one packet by itself: keys that are not for batches."""
        self.flush()
        size = self._channel.seal_into(payload, self._loose, now)
        self.link_bytes += size
        return bool(size) and self._link.send(self._loose[:size])

    def _add_singly(self, packet: SuperPacket, now: float) -> int:
        sent = 0
        for number in range(packet.count):
            size = packet.fill(self._row, 0, 0, number, 1)
            sent += self._send_loose(self._row[:size].data, now)
        return sent

    def _make_room(self, size: int, *, shorter: bool = False) -> int:
        """Flush if no datagram of this size may follow; give the room."""
        if self._count:
            fits = size == self._size or (shorter and size < self._size)
            if self._prefix:
                fits = True
            room = min(
                RUN_MAX - self._count, (RUN_SIZE_MAX - self._end) // size
            )
            if fits and room > 0 and not self._last:
                return room
            self.flush()
        return max(1, min(RUN_MAX, RUN_SIZE_MAX // size))

    def _added(self, size: int, count: int) -> None:
        if not self._count:
            self._size = size
        self._last = size < self._size and not self._prefix
        self._end += size * count
        self._count += count

    def _seal_some(
        self, key: AeadKey, packet: SuperPacket, start: int, now: float
    ) -> int:
        """Seal full segments from `start` on, as many as the run takes."""
        body = self._prefix + len(key.header) + PACKET_ID_SIZE + TAG_SIZE
        size = body + packet.size
        count = min(self._make_room(size), packet.whole - start)
        count = min(count, PACKET_ID_MAX - key.sent)
        if count <= 0:
            return 0
        self._use(key)
        self._wire_ids[:count] = _NUMBERS[:count] + (key.sent + 1)
        key.sent += count
        block = self._block(self._end, size, count)
        packet.fill(self._data, self._end + body, size, start, count)
        self._seal_block(key, size, body, count)
        tags = self._block(self._end + size, size, count)
        block[:, body - TAG_SIZE : body] = tags[:, :TAG_SIZE]
        head = self._prefix
        id_end = _ID_AT + PACKET_ID_SIZE
        block[:, head : body - TAG_SIZE] = self._ids[
            :count, _ID_AT - len(key.header) : id_end
        ]
        if head:
            length = (size - head).to_bytes(LENGTH_SIZE)
            block[:, :head] = np.frombuffer(length, np.uint8)
        self._channel.count_sealed(
            key, count, count * (size - head), count * packet.size, now
        )
        self.link_bytes += count * (size - head)
        self._added(size, count)
        return count

    def _block(self, begin: int, size: int, count: int) -> Array:
        """Show `count` rows of `size` bytes from `begin` on."""
        return self._data[begin : begin + count * size].reshape(count, size)

    def _seal_block(
        self, key: AeadKey, size: int, body: int, count: int
    ) -> None:
        """Seal what lies in the next `count` slots of `size` bytes."""
        if self._end % size:
            plains, sealed = self._views(self._end, size, body, count)
            first = 0
        else:
            cached = self._slots.get(size)
            if cached is None:
                if len(self._slots) >= _CACHED_SIZES:
                    self._slots.clear()
                slots = max(1, min(RUN_MAX, RUN_SIZE_MAX // size))
                cached = self._views(0, size, body, slots)
                self._slots[size] = cached
            plains, sealed = cached
            first = self._end // size
        last = first + count
        deque(
            map(
                key.seal,
                self._nonces[:count],
                plains[first:last],
                self._aads,
                sealed[first:last],
            ),
            maxlen=0,
        )

    def _views(
        self, begin: int, size: int, body: int, count: int
    ) -> tuple[Views, Views]:
        view = self._view
        starts = range(begin, begin + count * size, size)
        return (
            [view[at + body : at + size] for at in starts],
            [view[at + body : at + size + TAG_SIZE] for at in starts],
        )

    def _use(self, key: AeadKey) -> None:
        """Put what stays the same for this key into the id rows."""
        if key is self._key:
            return
        self._key = key
        start = _ID_AT - len(key.header)
        self._slots.clear()
        self._ids[:, start:_ID_AT] = np.frombuffer(key.header, np.uint8)
        iv = np.frombuffer(key.encrypt_iv, np.uint8)
        self._ids[:, _ID_AT + PACKET_ID_SIZE :] = iv
        begin = start + key.aad_start
        end = _ID_AT + PACKET_ID_SIZE
        self._aads = [row[begin:end].data for row in self._ids]
