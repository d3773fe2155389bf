"""The data channel: which key seals, which key opens, and what is dropped.

Sans-I/O, and mutable on purpose: packets do not pass through the engine's
`step`. A data plane calls `seal_into` and `open_into` for each packet; the
engine installs keys and reads `Traffic` when its timers run.

Nothing that the network sends makes these methods raise. What is not
accepted is counted in `drops` under a stable slug.
"""

from collections.abc import Container
from typing import Final

from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.engine import inner
from qubes_vpn.engine.data_key import OPEN_ROOM, DataKey, make_data_key
from qubes_vpn.engine.fragments import HEADER_SIZE, Fragments
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.data import DATA_V1_HEADER_SIZE, DATA_V2_HEADER_SIZE
from qubes_vpn.wire.opcode import Opcode

PRIMARY: Final = 0
SECONDARY: Final = 1
# The most that sealing adds: header, packet id and tag, or header, HMAC-SHA512,
# IV, packet id and padding; and framing.
OVERHEAD_MAX: Final = 4 + 64 + 16 + 8 + 16 + 2 + HEADER_SIZE
# Header sizes by opcode.
HEADER_SIZES: Final[dict[int, int]] = {
    Opcode.P_DATA_V1: DATA_V1_HEADER_SIZE,
    Opcode.P_DATA_V2: DATA_V2_HEADER_SIZE,
}
# Kinds of packets (5 bits) that are data; without opcodes, all are.
DATA_KINDS: Final = frozenset(HEADER_SIZES)
_ANY_KIND: Final = frozenset(range(32))
_BLOCK_SIZE: Final = 16


class DataChannel:
    """Seals and opens data packets with the keys of two slots.

    PRIMARY seals; both open, by the key id of the packet. `install` puts
    keys into a slot, `swap` exchanges the slots, `remove` forgets.

    sources: packed addresses that inner packets may come from, or None for
    any: a server knows its client's, a client does not know the world's.
    drops: counts by reason slug. data_kinds: the opcodes of its packets.
    """

    def __init__(
        self, traffic: Traffic, sources: Container[bytes] | None = None
    ) -> None:
        self.traffic = traffic
        self.sources = sources
        self.drops: dict[str, int] = {}
        self._slots: list[DataKey | None] = [None, None]
        self._by_id: dict[int, DataKey] = {}
        self._bare: DataKey | None = None
        self._fragments = Fragments()
        self.data_kinds = DATA_KINDS

    @property
    def primary(self) -> DataKey | None:
        """The key that seals, or None: then nothing can be sent."""
        return self._slots[PRIMARY]

    def install(self, slot: int, keys: DataKeys) -> None:
        """Put keys into a slot; what was there is forgotten."""
        self._slots[slot] = make_data_key(keys)
        self._index()

    def swap(self) -> None:
        """Exchange the slots: what was SECONDARY seals from now on."""
        self._slots.reverse()
        self._index()

    def remove(self, slot: int) -> None:
        """Forget the keys of a slot."""
        self._slots[slot] = None
        self._index()

    def drop(self, reason: str, count: int = 1) -> None:
        """Count packets that were not accepted."""
        self.drops[reason] = self.drops.get(reason, 0) + count

    def key(self, key_id: int) -> DataKey | None:
        """Give the installed key with this key id."""
        return self._by_id.get(key_id)

    def seal(self, payload: bytes, now: float) -> bytes:
        """Encrypt a payload; b"" when it could not be (counted).

        now: mono seconds, as everywhere here.
        """
        out = bytearray(len(payload) + OVERHEAD_MAX)
        size = self.seal_into(memoryview(payload), memoryview(out), now)
        return bytes(out[:size])

    def seal_into(
        self, payload: memoryview, out: memoryview, now: float
    ) -> int:
        """Encrypt a payload into `out`; return the datagram's size.

        out: len(payload) + OVERHEAD_MAX bytes at least. Returns 0 when there
        is no key, or no packet id left; then nothing may be sent.
        """
        key = self._slots[PRIMARY]
        if key is None:
            self.drop("no-key")
            return 0
        if not payload:
            self.drop("empty")
            return 0
        if key.style:
            payload = memoryview(inner.wrap(key.style, bytes(payload)))
        size = key.seal_into(payload, out)
        if not size:
            self.drop("packet-ids-used-up")
            return 0
        self.count_sealed(key, 1, size, len(payload), now)
        return size

    def count_sealed(
        self, key: DataKey, packets: int, size: int, plain: int, now: float
    ) -> None:
        """Account for datagrams, each `size` bytes with `plain` bytes inside.

        Traffic.tun_bytes is the plane's to count here: it knows a packet of
        the tunnel device from a ping.
        """
        traffic = self.traffic
        traffic.tx_packets += packets
        traffic.tx_bytes += packets * size
        traffic.tx_last = now
        traffic.key_packets = key.sent
        traffic.key_epoch = key.epoch
        traffic.key_blocks += packets * (1 + plain // _BLOCK_SIZE)

    def open(self, datagram: bytes, now: float) -> bytes | None:
        """Authenticate and decrypt; None when there is nothing for the tun."""
        size = len(datagram)
        out = bytearray(size)
        buffer = bytearray(size + OPEN_ROOM)
        buffer[:size] = datagram
        payload = self.open_into(memoryview(buffer), size, memoryview(out), now)
        return None if payload is None else bytes(payload)

    def open_into(
        self, buffer: memoryview, size: int, out: memoryview, now: float
    ) -> memoryview | None:
        """Authenticate and decrypt the datagram buffer[:size] into `out`.

        Returns the inner IP packet, a part of `out`; None for what was
        dropped, and for pings and the like, which are not for the tunnel
        device. buffer has room for OPEN_ROOM bytes more, which are written.
        """
        key, plain_size = self.open_plain(buffer, size, out, now)
        if key is None:
            return None
        plain = out[:plain_size]
        if key.style:
            try:
                plain = self._unframed(key.style, plain, now)
            except UntrustedInputError as error:
                self.drop(error.reason)
                return None
        return plain if plain and self.accept(plain) else None

    def _unframed(
        self, style: str, plain: memoryview, now: float
    ) -> memoryview:
        """Take the framing off; nothing is left of an incomplete packet."""
        if style.startswith(inner.FRAGMENT):
            whole = self._fragments.take(plain, now)
            if whole is None:
                return plain[:0]
            style, plain = style[1:], whole
        return inner.unwrap(style, plain)

    def open_plain(
        self, buffer: memoryview, size: int, out: memoryview, now: float
    ) -> tuple[DataKey | None, int]:
        """Do the first half of open_into: what is authentic, as it is.

        Returns the key and the size of the content in `out`, or (None, 0).
        """
        first = buffer[0] if size else 0
        header = HEADER_SIZES.get(first >> 3)
        key = self._by_id.get(first & 7)
        if self._bare is not None:
            header, key = 0, self._bare
        if header is None or key is None:
            self.drop("unknown-key" if header else "not-data")
            return None, 0
        try:
            plain_size = key.open_into(buffer, size, header, out, now)
        except UntrustedInputError as error:
            self.refuse(error.reason)
            return None, 0
        self.count_opened(key, 1, size, plain_size, now)
        return key, plain_size

    def accept(self, plain: memoryview) -> bool:
        """Say whether authenticated content is a packet for the tun.

        Swallows what the peers say to each other, and refuses what is no
        whole IP packet, or is not from one of `sources`.
        """
        if self._is_ours(plain):
            return False
        try:
            inner.check_ip(plain)
        except UntrustedInputError as error:
            self.drop(error.reason)
            return False
        sources = self.sources
        if sources is not None and inner.source_of(plain) not in sources:
            self.drop("bad-source")
            return False
        self.traffic.tun_bytes += len(plain)
        return True

    def refuse(self, reason: str) -> None:
        """Count a datagram that was not accepted, and failed tags apart."""
        self.drop(reason)
        if reason in {"bad-tag", "bad-hmac"}:
            self.traffic.decrypt_failures += 1

    def count_opened(
        self, key: DataKey, packets: int, size: int, plain: int, now: float
    ) -> None:
        """Account for authenticated datagrams, as count_sealed does."""
        traffic = self.traffic
        traffic.rx_packets += packets
        traffic.rx_bytes += packets * size
        traffic.rx_last = now
        if key is self._slots[PRIMARY]:
            traffic.key_blocks += packets * (1 + plain // _BLOCK_SIZE)

    def _is_ours(self, plain: memoryview) -> bool:
        """Swallow what the peers say to each other: pings and OCC."""
        if not plain or plain[0] not in (inner.PING[0], inner.OCC_MAGIC[0]):
            return False
        if plain == inner.PING:
            self.traffic.ping_seen = True
            return True
        size = len(inner.OCC_MAGIC)
        if len(plain) > size and plain[:size] == inner.OCC_MAGIC:
            if plain[size] == inner.OCC_EXIT:
                self.traffic.peer_exited = True
            else:
                rest = bytes(plain[size + 1 : size + 3])
                self.traffic.occ.append((plain[size], len(plain), rest))
            return True
        return False

    def _index(self) -> None:
        """Find keys by key id; should two share one, PRIMARY opens."""
        keys = [key for key in reversed(self._slots) if key]
        self._by_id = {key.key_id: key for key in keys}
        self._bare = next((key for key in keys if key.bare), None)
        self.data_kinds = _ANY_KIND if self._bare else DATA_KINDS
