"""Opening many datagrams at a stride, into rows that coalesce.py joins."""

from collections import deque
from typing import Final

import numpy as np

from qubes_vpn.crypto.aead import TAG_SIZE, InvalidTag
from qubes_vpn.dataplane.coalesce import ROW_LEAD, Coalescer
from qubes_vpn.dataplane.segment import Array
from qubes_vpn.engine.data_channel import HEADER_SIZES, DataChannel
from qubes_vpn.engine.data_key import PACKET_ID_SIZE, AeadKey
from qubes_vpn.wire.data import DATA_V2_HEADER_SIZE

ROWS: Final = 64
# Row of the plain packets: what an outer packet of 2,000 bytes holds. Not a
# power of two, for the sake of the caches. Bigger ones go one by one.
ROW_WIDTH: Final = 2112
PLAIN_MAX: Final = ROW_WIDTH - ROW_LEAD - 16
# From how many equal datagrams on arrays are cheaper than a loop.
_WORTH: Final = 3
_ID_AT: Final = 4
_IDS_WIDTH: Final = 16
_CACHED: Final = 16

Views = list[memoryview]


class Opener:
    """Opens datagrams of a buffer into the rows of a Coalescer.

    sizes: of the packets in the rows so far; 0 where one was refused. The
    owner delivers the rows and clears `sizes` before there are ROWS.
    """

    def __init__(
        self, channel: DataChannel, coalescer: Coalescer, data: Array
    ) -> None:
        """data: the receive buffer, with room behind every datagram."""
        self.sizes: list[int] = []
        self._channel = channel
        self._rows = coalescer
        self._data = data
        self._view = data.data
        self._ids = np.zeros((ROWS, _IDS_WIDTH), np.uint8)
        self._nonces: Views = [row[_ID_AT:].data for row in self._ids]
        self._aads: Views = []
        self._key: AeadKey | None = None
        self._header = 0
        self._sealed: dict[tuple[int, int, int], Views] = {}
        self._plain: dict[int, Views] = {}

    def open_rows(
        self, begin: int, stride: int, size: int, count: int, now: float
    ) -> None:
        """Open `count` datagrams of `size` bytes, each `stride` further on.

        They may lie end to end; what is behind the last is left as it was.
        """
        first = self._view[begin]
        key = self._channel.key(first & 7)
        header = HEADER_SIZES.get(first >> 3, 0)
        body = header + PACKET_ID_SIZE + TAG_SIZE
        plain = size - body
        if (
            count < _WORTH
            or not isinstance(key, AeadKey)
            or not header
            or not 0 < plain <= PLAIN_MAX
        ):
            for at in range(begin, begin + count * stride, stride):
                self.open_one(at, size, now)
            return
        self._use(key, header)
        rows = self._data[begin : begin + count * stride]
        rows = rows.reshape(count, stride)
        id_end = header + PACKET_ID_SIZE
        ids = self._ids[:count]
        ids[:, _ID_AT - header : _ID_AT + PACKET_ID_SIZE] = rows[:, :id_end]
        tags = rows[:, id_end:body].copy()
        behind = self._data[begin + size : begin + size + count * stride]
        last = behind[(count - 1) * stride :][:TAG_SIZE]
        kept = last.copy()
        behind.reshape(count, stride)[:, :TAG_SIZE] = tags
        sealed = self._sealed_views(begin + body, stride, plain, count)
        opened = self._plain_views(plain)[
            len(self.sizes) : len(self.sizes) + count
        ]
        good = self._open_all(key, sealed, opened)
        last[:] = kept
        wire = ids[:, _ID_AT : _ID_AT + PACKET_ID_SIZE].copy()
        numbers = wire.view(">u4").reshape(-1).tolist()
        good = self._check_replay(key, numbers, good, now)
        accepted = good.count(True)
        self._channel.count_opened(
            key, accepted, accepted * size, accepted * plain, now
        )
        self.sizes += [plain if each else 0 for each in good]

    def open_one(self, begin: int, size: int, now: float) -> None:
        """Open one datagram of at most PLAIN_MAX bytes."""
        row = len(self.sizes)
        end = begin + size
        behind = bytes(self._view[end : end + TAG_SIZE])
        out = self._rows.packet(row, PLAIN_MAX)
        _, plain = self._channel.open_plain(
            self._view[begin : end + TAG_SIZE], size, out, now
        )
        self._view[end : end + TAG_SIZE] = behind
        self.sizes.append(plain)

    def _open_all(
        self, key: AeadKey, sealed: Views, opened: Views
    ) -> list[bool]:
        aads = self._aads
        try:
            deque(map(key.open_, self._nonces, sealed, aads, opened), maxlen=0)
        except InvalidTag:
            return [
                self._open_again(key, *each)
                for each in zip(
                    self._nonces, sealed, aads, opened, strict=False
                )
            ]
        return [True] * len(sealed)

    def _open_again(
        self,
        key: AeadKey,
        nonce: memoryview,
        sealed: memoryview,
        aad: memoryview,
        opened: memoryview,
    ) -> bool:
        try:
            key.open_(nonce, sealed, aad, opened)
        except InvalidTag:
            self._channel.refuse("bad-tag")
            return False
        return True

    def _check_replay(
        self, key: AeadKey, numbers: list[int], good: list[bool], now: float
    ) -> list[bool]:
        accept = key.window.accept
        for index, number in enumerate(numbers):
            if good[index] and not accept(number, now):
                self._channel.refuse("replay")
                good[index] = False
        return good

    def _use(self, key: AeadKey, header: int) -> None:
        """Put what stays the same for this key into the id rows."""
        if key is self._key and header == self._header:
            return
        self._key, self._header = key, header
        iv = np.frombuffer(key.decrypt_iv, np.uint8)
        self._ids[:, _ID_AT + PACKET_ID_SIZE :] = iv
        start = _ID_AT - header if header == DATA_V2_HEADER_SIZE else _ID_AT
        end = _ID_AT + PACKET_ID_SIZE
        self._aads = [row[start:end].data for row in self._ids]

    def _sealed_views(
        self, begin: int, stride: int, plain: int, count: int
    ) -> Views:
        key = (begin, stride, plain)
        views = self._sealed.get(key, [])
        if len(views) < count:
            if len(self._sealed) >= _CACHED:
                self._sealed.clear()
            size = plain + TAG_SIZE
            starts = range(begin, begin + count * stride, stride)
            views = [self._view[at : at + size] for at in starts]
            self._sealed[key] = views
        return views[:count]

    def _plain_views(self, plain: int) -> Views:
        views = self._plain.get(plain)
        if views is None:
            if len(self._plain) >= _CACHED:
                self._plain.clear()
            views = [self._rows.packet(row, plain) for row in range(ROWS)]
            self._plain[plain] = views
        return views
