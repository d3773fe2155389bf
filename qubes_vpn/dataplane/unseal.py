"""Opening many datagrams at a stride, into rows that coalesce.py joins.

A datagram lies at the start of each row of the receive buffer and is opened
from there. Before that, one copy each puts all tags behind the ciphertexts,
and the implicit IV behind the packet ids, where the tags were:

    header 1 or 4 | packet id 4 | implicit IV 8 | ... | ciphertext | tag 16
                   \\------- the nonce ---------/

Of keys that have the tag behind the ciphertext anyway, nothing is moved; the
nonces are elsewhere.
"""

import struct
from collections import deque
from typing import Final

import numpy as np

from qubes_vpn.crypto.aead import NONCE_SIZE, TAG_SIZE, InvalidTag
from qubes_vpn.crypto.replay import ReplayWindow
from qubes_vpn.dataplane.coalesce import ROW_LEAD, Coalescer
from qubes_vpn.engine.aead_half import AeadHalf
from qubes_vpn.engine.data_channel import HEADER_SIZES, DataChannel
from qubes_vpn.engine.data_key import BatchKey, batch_key
from qubes_vpn.engine.epoch_key import COUNTER_MAX
from qubes_vpn.wire.data import DATA_V2_HEADER_SIZE

ROWS: Final = 64
# What a row holds: an outer packet of 2,000 bytes, tag included. Not a power
# of two, for the sake of the caches. Bigger ones go one by one.
ROW_WIDTH: Final = 2112
SEALED_MAX: Final = ROW_WIDTH - ROW_LEAD - TAG_SIZE - 4
# From how many equal datagrams on arrays are cheaper than a loop.
_WORTH: Final = 2
_CACHED: Final = 32
# What of a wire id is the packet id, by its size.
_ID_MASKS: Final = {4: 0xFFFFFFFF, 8: COUNTER_MAX}

Views = list[memoryview]
# For one layout: nonces, additional data, ciphertexts, plain packets.
Layout = tuple[Views, Views, Views, Views]


class Opener:
    """Opens the datagrams in the rows of `data`.

    sizes: of the packets in the Coalescer's rows so far; 0 where one was
    refused. The owner delivers the rows and clears `sizes` before there are
    more than ROWS. channel: whose datagrams they are.
    """

    def __init__(self, channel: DataChannel, coalescer: Coalescer) -> None:
        self.sizes: list[int] = []
        self.data = np.zeros((ROWS, ROW_WIDTH), np.uint8)
        self.view = self.data.reshape(-1).data
        self.channel = channel
        self._rows = coalescer
        self._nonces = np.zeros((ROWS, NONCE_SIZE), np.uint8)
        self._layouts: dict[tuple[int, int, int], Layout] = {}
        self._numbers = {
            (n, size): struct.Struct(f">{n}{code}").unpack
            for n in range(ROWS + 1)
            for size, code in ((4, "I"), (8, "Q"))
        }

    def open_rows(self, first: int, size: int, count: int, now: float) -> None:
        """Open the datagrams in rows first..first+count, each of `size`.

        size: SEALED_MAX at most. Their first bytes are the same.
        """
        kind = self.view[first * ROW_WIDTH]
        key = batch_key(self.channel.key(kind & 7))
        header = HEADER_SIZES.get(kind >> 3, 0)
        if (
            count < _WORTH
            or key is None
            or not header
            or size <= header + key.id_size + TAG_SIZE
            or not self._open_alike(key, header, first, size, count, now)
        ):
            for row in range(first, first + count):
                self.open_one(row, size, now)

    def _open_alike(
        self,
        key: BatchKey,
        header: int,
        first: int,
        size: int,
        count: int,
        now: float,
    ) -> bool:
        """Open rows together; False: they have to be opened one by one."""
        rows = self.data[first : first + count]
        id_end = header + key.id_size
        wire = rows[:, header:id_end].tobytes()
        numbers = self._numbers[count, key.id_size](wire)
        low = numbers[0]
        in_order = numbers == tuple(range(low, low + count))
        if in_order:
            incoming = key.find(low, numbers[-1])
        else:
            incoming = key.find(min(numbers), max(numbers))
        if incoming is None or (key.tag_last and header != len(key.header)):
            return False
        iv = np.frombuffer(incoming.half.iv, np.uint8)
        if key.tag_last:
            nonces = self._nonces[first : first + count]
            nonces[:] = iv
            nonces[:, : key.id_size] ^= rows[:, header:id_end]
        else:
            rows[:, size : size + TAG_SIZE] = rows[:, id_end:][:, :TAG_SIZE]
            rows[:, id_end : header + NONCE_SIZE] = iv[key.id_size :]
        layout = self._layout(key, header, size)
        refused = self._open_all(incoming.half, layout, first, count)
        mask = _ID_MASKS[key.id_size]
        if (
            refused
            or not in_order
            or not incoming.window.accept_run(low & mask, count, now)
        ):
            self._check_replay(incoming.window, numbers, mask, refused, now)
        accepted, plain = count - len(refused), len(layout[3][0])
        if accepted:
            incoming.half.count(plain, accepted)
            self.channel.count_opened(key, accepted, size, plain, now)
        sizes = [plain] * count
        for index in refused:
            sizes[index] = 0
        self.sizes += sizes
        return True

    def open_one(self, row: int, size: int, now: float) -> None:
        """Open the datagram of one row, SEALED_MAX bytes at most."""
        begin = row * ROW_WIDTH
        _, plain = self.channel.open_plain(
            self.view[begin : begin + ROW_WIDTH],
            size,
            self._rows.packet(len(self.sizes), SEALED_MAX),
            now,
        )
        self.sizes.append(plain)

    def _open_all(
        self, half: AeadHalf, layout: Layout, first: int, count: int
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
            deque(map(half.open, *parts), maxlen=0)
        except InvalidTag:
            return {
                number
                for number, each in enumerate(zip(*parts, strict=True))
                if not self._open_again(half, *each)
            }
        return set()

    def _open_again(self, half: AeadHalf, *parts: memoryview) -> bool:
        nonce, sealed, aad, plain = parts
        try:
            half.open(nonce, sealed, aad, plain)
        except InvalidTag:
            self.channel.refuse("bad-tag")
            return False
        return True

    def _check_replay(
        self,
        window: ReplayWindow,
        numbers: tuple[int, ...],
        mask: int,
        refused: set[int],
        now: float,
    ) -> None:
        """Check one by one; add to `refused`."""
        for index, number in enumerate(numbers):
            if index not in refused and not window.accept(number & mask, now):
                self.channel.refuse("replay")
                refused.add(index)

    def _layout(self, key: BatchKey, header: int, size: int) -> Layout:
        where = header, key.id_size, size
        layout = self._layouts.get(where)
        if layout is None:
            if len(self._layouts) >= _CACHED:
                self._layouts.clear()
            layout = self._layouts[where] = self._make_layout(key, *where)
        return layout

    def _make_layout(
        self, key: BatchKey, header: int, id_size: int, size: int
    ) -> Layout:
        view, id_end = self.view, header + id_size
        aad = 0 if header == DATA_V2_HEADER_SIZE else header
        starts = range(0, ROWS * ROW_WIDTH, ROW_WIDTH)
        if key.tag_last:
            body, end = id_end, size
            nonces = [row[:NONCE_SIZE].data for row in self._nonces]
        else:
            body, end = id_end + TAG_SIZE, size + TAG_SIZE
            nonces = [view[at + header :][:NONCE_SIZE] for at in starts]
        plain = end - TAG_SIZE - body
        return (
            nonces,
            [view[at + aad : at + id_end] for at in starts],
            [view[at + body : at + end] for at in starts],
            [self._rows.packet(row, plain) for row in range(ROWS)],
        )
