"""Opening many datagrams at a stride, into rows that coalesce.py joins.

A datagram lies at the start of each row of the receive buffer and is opened
from there. Before that, one copy each puts all tags behind the ciphertexts,
and the implicit IV behind the packet ids, where the tags were:

    header 1 or 4 | packet id 4 | implicit IV 8 | ... | ciphertext | tag 16
                   \\------- the nonce ---------/
"""

import struct
from collections import deque
from typing import Final

import numpy as np

from qubes_vpn.crypto.aead import NONCE_SIZE, TAG_SIZE, InvalidTag
from qubes_vpn.dataplane.coalesce import ROW_LEAD, Coalescer
from qubes_vpn.engine.data_channel import HEADER_SIZES, DataChannel
from qubes_vpn.engine.data_key import PACKET_ID_SIZE, AeadKey
from qubes_vpn.wire.data import DATA_V2_HEADER_SIZE

ROWS: Final = 64
# What a row holds: an outer packet of 2,000 bytes, tag included. Not a power
# of two, for the sake of the caches. Bigger ones go one by one.
ROW_WIDTH: Final = 2112
SEALED_MAX: Final = ROW_WIDTH - ROW_LEAD - TAG_SIZE - 4
# From how many equal datagrams on arrays are cheaper than a loop.
_WORTH: Final = 2
_CACHED: Final = 32

Views = list[memoryview]
# For one layout: nonces, additional data, ciphertexts, plain packets.
Layout = tuple[Views, Views, Views, Views]


class Opener:
    """Opens the datagrams in the rows of `data`.

    sizes: of the packets in the Coalescer's rows so far; 0 where one was
    refused. The owner delivers the rows and clears `sizes` before there are
    more than ROWS.
    """

    def __init__(self, channel: DataChannel, coalescer: Coalescer) -> None:
        self.sizes: list[int] = []
        self.data = np.zeros((ROWS, ROW_WIDTH), np.uint8)
        self.view = self.data.reshape(-1).data
        self._channel = channel
        self._rows = coalescer
        self._key: AeadKey | None = None
        self._iv = np.zeros(8, np.uint8)
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._numbers = [
            struct.Struct(f">{n}I").unpack for n in range(ROWS + 1)
        ]

    def open_rows(self, first: int, size: int, count: int, now: float) -> None:
        """Open the datagrams in rows first..first+count, each of `size`.

        size: SEALED_MAX at most. Their first bytes are the same.
        """
        kind = self.view[first * ROW_WIDTH]
        key = self._channel.key(kind & 7)
        header = HEADER_SIZES.get(kind >> 3, 0)
        body = header + PACKET_ID_SIZE + TAG_SIZE
        plain = size - body
        if (
            count < _WORTH
            or not header
            or not isinstance(key, AeadKey)
            or plain <= 0
        ):
            for row in range(first, first + count):
                self.open_one(row, size, now)
            return
        if key is not self._key:
            self._key = key
            self._iv = np.frombuffer(key.decrypt_iv, np.uint8)
        rows = self.data[first : first + count]
        id_end = header + PACKET_ID_SIZE
        rows[:, size : size + TAG_SIZE] = rows[:, id_end:body]
        rows[:, id_end : header + NONCE_SIZE] = self._iv
        wire = rows[:, header:id_end].tobytes()
        numbers = self._numbers[count](wire)
        layout = self._layout(header, size)
        refused = self._open_all(key, layout, first, count)
        low = numbers[0]
        in_order = numbers == tuple(range(low, low + count))
        if (
            refused
            or not in_order
            or not key.window.accept_run(low, count, now)
        ):
            self._check_replay(key, numbers, refused, now)
        accepted = count - len(refused)
        self._channel.count_opened(
            key, accepted, accepted * size, accepted * plain, now
        )
        sizes = [plain] * count
        for index in refused:
            sizes[index] = 0
        self.sizes += sizes

    def open_one(self, row: int, size: int, now: float) -> None:
        """Open the datagram of one row, SEALED_MAX bytes at most."""
        begin = row * ROW_WIDTH
        _, plain = self._channel.open_plain(
            self.view[begin : begin + ROW_WIDTH],
            size,
            self._rows.packet(len(self.sizes), SEALED_MAX),
            now,
        )
        self.sizes.append(plain)

    def _open_all(
        self, key: AeadKey, layout: Layout, first: int, count: int
    ) -> set[int]:
        """Decrypt; return the numbers of those that are not authentic."""
        nonces, aads, sealed, plain = layout
        last, row = first + count, len(self.sizes)
        parts = (
            nonces[first:last],
            sealed[first:last],
            aads[first:last],
            plain[row : row + count],
        )
        try:
            deque(map(key.open_, *parts), maxlen=0)
        except InvalidTag:
            return {
                number
                for number, each in enumerate(zip(*parts, strict=True))
                if not self._open_again(key, *each)
            }
        return set()

    def _open_again(self, key: AeadKey, *parts: memoryview) -> bool:
        nonce, sealed, aad, plain = parts
        try:
            key.open_(nonce, sealed, aad, plain)
        except InvalidTag:
            self._channel.refuse("bad-tag")
            return False
        return True

    def _check_replay(
        self,
        key: AeadKey,
        numbers: tuple[int, ...],
        refused: set[int],
        now: float,
    ) -> None:
        """Check one by one; add to `refused`."""
        for index, number in enumerate(numbers):
            if index not in refused and not key.window.accept(number, now):
                self._channel.refuse("replay")
                refused.add(index)

    def _layout(self, header: int, size: int) -> Layout:
        layout = self._layouts.get((header, size))
        if layout is None:
            if len(self._layouts) >= _CACHED:
                self._layouts.clear()
            layout = self._make_layout(header, size)
            self._layouts[header, size] = layout
        return layout

    def _make_layout(self, header: int, size: int) -> Layout:
        view, id_end = self.view, header + PACKET_ID_SIZE
        body = id_end + TAG_SIZE
        aad = 0 if header == DATA_V2_HEADER_SIZE else header
        starts = range(0, ROWS * ROW_WIDTH, ROW_WIDTH)
        end = size + TAG_SIZE
        return (
            [view[at + header : at + header + NONCE_SIZE] for at in starts],
            [view[at + aad : at + id_end] for at in starts],
            [view[at + body : at + end] for at in starts],
            [self._rows.packet(row, size - body) for row in range(ROWS)],
        )
