"""Sealing many packets at a stride, and sending them in one call.

A run is a row of datagrams of equal size in one buffer, which UDP_SEGMENT
sends in one call; the last may be shorter. Each is sealed where it lies:

    [length 2, streams only] header 1 or 4 | packet id 4 | tag 16 | content
    [length 2, streams only] header 4 | wire id 8 | content | tag 16

The cipher writes its tag after the content; in the first layout that is over
the first bytes of the next datagram. So packets are sealed in ascending order,
additional data and nonces are kept apart, and one copy each moves all tags
and all headers into their places at the end.

The segments of several super-packets are placed one after the other, and only
then their headers are written and they are sealed, all together: arrays cost
as much for a few segments as for many, and a sender's super-packets are small
while its window is.
"""

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np

from qubes_vpn.crypto.aead import NONCE_SIZE, TAG_SIZE
from qubes_vpn.dataplane.link import DATAGRAM_MAX, DatagramLink, StreamLink
from qubes_vpn.dataplane.segment import (
    Array,
    HeaderRows,
    Shape,
    SuperPacket,
    finish,
)
from qubes_vpn.engine.aead_half import AeadHalf
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.data_key import BatchKey, batch_key
from qubes_vpn.wire.framing import LENGTH_SIZE

# What one run may have, in datagrams and in bytes: two super-packets.
RUN_MAX: Final = 128
RUN_SIZE_MAX: Final = 2 * 65_536
# Layout of a row of `_ids`: header, right-aligned | wire id | rest of the
# nonce; and, where the nonce does not begin with the wire id itself, at
# _NONCE_AT all of it.
_ID_AT: Final = 8
_NONCE_AT: Final = 24
_IDS_WIDTH: Final = 40
_CACHED_SIZES: Final = 16

Views = list[memoryview]


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Where things are in the packets of one kind of key.

    header, prefix: sizes of the header, and of what stands before it. body:
    where the content begins. tail: size of a tag behind it. ids, nonces,
    aads: for each row of `_ids`; ids with the header before it.
    """

    prefix: int
    header: int
    body: int
    tail: int
    ids: Array
    nonces: Views
    aads: Views


class _Slots:
    """Where in a buffer packets of one size are sealed, slot by slot.

    plains: what is sealed; sealed: where that goes, tag behind it. ids, tags:
    the places of header and wire id, and of tags that stand before the
    content; written: where the cipher has left those. lengths: the lengths of
    a stream. inner: where the headers of segments are.
    """

    __slots__ = (
        "ids",
        "inner",
        "lengths",
        "plains",
        "sealed",
        "tags",
        "written",
    )

    def __init__(
        self,
        data: Array,
        begin: int,
        size: int,
        layout: _Layout,
        count: int,
        shape: Shape,
    ) -> None:
        def block(at: int, width: int) -> Array:
            where = begin + at
            return np.ndarray((count, width), np.uint8, data, where, (size, 1))

        view, body, end = data.data, layout.body, size - layout.tail
        starts = range(begin, begin + count * size, size)
        self.plains: Views = [view[at + body : at + end] for at in starts]
        self.sealed: Views = [
            view[at + body : at + end + TAG_SIZE] for at in starts
        ]
        self.ids = block(layout.prefix, layout.ids.shape[1])
        self.tags = self.written = None
        if not layout.tail:
            self.tags = block(body - TAG_SIZE, TAG_SIZE)
            self.written = block(size, TAG_SIZE)
        self.lengths = block(0, layout.prefix)
        self.inner = HeaderRows(
            data, begin + body, size, count, shape, end - body - shape[0]
        )


class Sealer:
    """Collects packets into runs, sealed, and sends them.

    link, channel: whose packets these are, until `turn_to` says otherwise.
    link_bytes: what was sealed, counted until its reader zeroes it.
    `flush` must be called before anything else is sent on the link.
    """

    def __init__(
        self, link: DatagramLink | StreamLink, channel: DataChannel
    ) -> None:
        self.link = link
        self.channel = channel
        # A packet may begin at the end of the longest run, and the tags of a
        # block are read one datagram further on.
        self._data = np.zeros(RUN_SIZE_MAX + 2 * DATAGRAM_MAX, np.uint8)
        self._view = self._data.data
        self._ids = np.zeros((RUN_MAX, _IDS_WIDTH), np.uint8)
        self._half: AeadHalf | None = None
        self._header = b""
        self._layouts: dict[tuple[int, int, int, int], _Layout] = {}
        self._slots: dict[tuple[int, int, int, Shape], _Slots] = {}
        self._row = np.zeros(DATAGRAM_MAX, np.uint8)
        # Segments that lie where they are to be sealed; how they are to be.
        self._placed: list[tuple[SuperPacket, int, int]] = []
        self._alike: tuple[AeadHalf, _Layout, int, Shape] | None
        self._alike = None
        self._key: BatchKey | None = None
        self._first = self._begin = self._waiting = 0
        self._end = 0
        self._size = 0
        self._count = 0
        self._last = False
        self.link_bytes = 0

    def turn_to(
        self, link: DatagramLink | StreamLink, channel: DataChannel
    ) -> None:
        """Send what there is, and go on with another peer."""
        self.flush()
        self.link = link
        self.channel = channel

    def add(self, payload: memoryview, now: float) -> bool:
        """Seal one packet into the run; False when it was refused."""
        self._seal_placed()
        prefix = LENGTH_SIZE if self.link.stream else 0
        end = self._end
        begin = end + prefix
        sealed = self.channel.seal_into(payload, self._view[begin:], now)
        if not sealed:
            return False
        if prefix:
            self._view[end:begin] = sealed.to_bytes(LENGTH_SIZE)
        size = prefix + sealed
        self._make_room(size, shorter=True)
        if self._end != end:
            self._view[:size] = self._view[end : end + size]
        self.link_bytes += sealed
        self._added(size, 1)
        return True

    def add_segments(self, packet: SuperPacket, now: float) -> int:
        """Seal all segments of a super-packet; return how many were sent."""
        key = batch_key(self.channel.primary)
        if key is None:
            return self._add_singly(packet, now)
        done = 0
        while done < packet.whole:
            count = self._place(key, packet, done, now)
            if not count:
                self.channel.drop("packet-ids-used-up", packet.whole - done)
                return done
            done += count
        if packet.tail:
            size = packet.fill(self._row, 0, 0, packet.whole, 1)
            done += self.add(self._row[:size].data, now)
        return done

    def flush(self) -> None:
        """Send the run."""
        self._seal_placed()
        if not self._count:
            return
        run = self._view[: self._end]
        if isinstance(self.link, StreamLink):
            self.link.send_frames(run)
        else:
            self.link.send_run(run, self._size, self._count)
        self._end = self._count = self._size = 0
        self._last = False

    def _add_singly(self, packet: SuperPacket, now: float) -> int:
        """Seal one by one, with a key that is not for batches."""
        size, done = packet.size, 0
        most = len(self._row) // size
        for start in range(0, packet.whole, most):
            count = min(most, packet.whole - start)
            packet.fill(self._row, 0, size, start, count)
            for at in range(0, count * size, size):
                done += self.add(self._row.data[at : at + size], now)
        if packet.tail:
            size = packet.fill(self._row, 0, 0, packet.whole, 1)
            done += self.add(self._row.data[:size], now)
        return done

    def _make_room(self, size: int, *, shorter: bool = False) -> int:
        """Flush if no datagram of this size may follow; give the room."""
        if self._count:
            fits = size == self._size or (shorter and size < self._size)
            if self.link.stream:
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
        self._last = size < self._size and not self.link.stream
        self._end += size * count
        self._count += count

    def _place(
        self, key: BatchKey, packet: SuperPacket, start: int, now: float
    ) -> int:
        """Place full segments from `start` on, as many as the run takes."""
        layout = self._layout(key)
        size = layout.body + packet.size + layout.tail
        count = min(self._make_room(size), packet.whole - start)
        half, first, count = key.take_ids(count, packet.size)
        if not count:
            return 0
        alike = half, layout, size, packet.shape
        if self._placed and (
            self._alike != alike or first != self._first + self._waiting
        ):
            self._seal_placed()
        if not self._placed:
            self._key, self._alike = key, alike
            self._first, self._begin, self._waiting = first, self._end, 0
        packet.place(self._data, self._end + layout.body, size, start, count)
        self._waiting += count
        self._placed.append((packet, start, count))
        sealed = size - layout.prefix
        self.channel.count_sealed(key, count, sealed, packet.size, now)
        self.link_bytes += count * sealed
        self._added(size, count)
        return count

    def _seal_placed(self) -> None:
        """Seal what has been placed, from all super-packets together."""
        if not self._placed or self._key is None or self._alike is None:
            return
        key, count = self._key, self._waiting
        half, layout, size, shape = self._alike
        slots, first = self._find_slots(self._begin, size, layout, shape, count)
        last = first + count
        finish(self._placed, slots.inner, first)
        self._placed.clear()
        self._number(key, half, layout, self._first, count)
        deque(
            map(
                half.seal,
                layout.nonces,
                slots.plains[first:last],
                layout.aads,
                slots.sealed[first:last],
            ),
            maxlen=0,
        )
        if slots.tags is not None and slots.written is not None:
            slots.tags[first:last] = slots.written[first:last]
        slots.ids[first:last] = layout.ids[:count]
        if layout.prefix:
            length = (size - layout.prefix).to_bytes(LENGTH_SIZE)
            slots.lengths[first:last] = np.frombuffer(length, np.uint8)

    def _find_slots(
        self, begin: int, size: int, layout: _Layout, shape: Shape, count: int
    ) -> tuple[_Slots, int]:
        """Give slots, and which of them is at `begin`: `count` from there."""
        if begin % size:
            data = self._data
            return _Slots(data, begin, size, layout, count, shape), 0
        where = size, layout.prefix, layout.body, shape
        slots = self._slots.get(where)
        if slots is None:
            if len(self._slots) >= _CACHED_SIZES:
                self._slots.clear()
            most = max(1, min(RUN_MAX, RUN_SIZE_MAX // size))
            slots = _Slots(self._data, 0, size, layout, most, shape)
            self._slots[where] = slots
        return slots, begin // size

    def _layout(self, key: BatchKey) -> _Layout:
        prefix = LENGTH_SIZE if self.link.stream else 0
        header = len(key.header)
        where = prefix, header, key.aad_start, key.id_size
        layout = self._layouts.get(where)
        if layout is None:
            id_end = _ID_AT + key.id_size
            begin = _ID_AT - header + key.aad_start
            nonce = _NONCE_AT if key.tag_last else _ID_AT
            body = prefix + header + key.id_size
            layout = self._layouts[where] = _Layout(
                prefix,
                header,
                body if key.tag_last else body + TAG_SIZE,
                TAG_SIZE if key.tag_last else 0,
                self._ids[:, _ID_AT - header : id_end],
                [row[nonce : nonce + NONCE_SIZE].data for row in self._ids],
                [row[begin:id_end].data for row in self._ids],
            )
        return layout

    def _number(
        self,
        key: BatchKey,
        half: AeadHalf,
        layout: _Layout,
        first: int,
        count: int,
    ) -> None:
        """Write the wire ids, and the nonces, of the next `count`."""
        ids, size = self._ids, key.id_size
        wire = ids.view(f">u{size}")
        if half is not self._half or key.header != self._header:
            self._half, self._header = half, key.header
            ids[:, _ID_AT - layout.header : _ID_AT] = np.frombuffer(
                key.header, np.uint8
            )
            at = _NONCE_AT if key.tag_last else _ID_AT
            ids[:, at : at + NONCE_SIZE] = np.frombuffer(half.iv, np.uint8)
        numbers = np.arange(first, first + count, dtype=np.uint64)
        wire[:count, _ID_AT // size] = numbers
        if key.tag_last:
            numbers ^= np.uint64(int.from_bytes(half.iv[:size]))
            wire[:count, _NONCE_AT // size] = numbers
