"""A data key of the epoch format of OpenVPN 2.7.

Wire layout after the header of 4 bytes (P_DATA_V2 alone):

    epoch 2 | packet id 6 | ciphertext | tag 16

The header, epoch and packet id are additional data; the nonce is epoch,
packet id and 4 zero bytes, xor the epoch's implicit IV of 12 bytes. Each
side moves to a next epoch when its key has done enough, and follows the
other. Source: OpenVPN 2.7 crypto_epoch.c, crypto.c, ssl.c (init_epoch_keys).
"""

from typing import Final

from qubes_vpn.crypto.aead import TAG_SIZE, InvalidTag, usage_limit
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.prf import epoch_keys, next_epoch
from qubes_vpn.crypto.replay import ReplayWindow
from qubes_vpn.engine.aead_half import AeadHalf, Incoming, blocks_of
from qubes_vpn.engine.inner import style_of
from qubes_vpn.errors import AuthenticationError, MalformedPacketError
from qubes_vpn.wire.data import data_v2_header

WIRE_ID_SIZE: Final = 8
COUNTER_BITS: Final = 48
COUNTER_MAX: Final = (1 << COUNTER_BITS) - 1
EPOCH_MAX: Final = 0xFFFF
# How many epochs ahead of the newest one seen are taken from the peer.
FUTURE: Final = 4
# No epoch above this is moved to by what the peer sends.
FOLLOWED_MAX: Final = EPOCH_MAX - FUTURE - 1
# From this epoch on a renegotiation is due.
EPOCH_WARN: Final = 0xF000
_PADDING_BITS: Final = 32


class _Epoch(AeadHalf):
    """The keys of one epoch, one direction. blocks: what they have done."""

    __slots__ = ("_xor", "number", "secret")

    def __init__(self, number: int, secret: bytes, cipher: str) -> None:
        self.number = number
        self.secret = secret
        super().__init__(cipher, epoch_keys(secret, cipher))
        self._xor = int.from_bytes(self.iv)

    def nonce(self, wire_id: int) -> bytes:
        return (self._xor ^ wire_id << _PADDING_BITS).to_bytes(12)


class _Incoming(Incoming):
    """An epoch that the peer may send in, and what came in it."""

    __slots__ = ("epoch",)

    def __init__(self, epoch: _Epoch, keys: DataKeys) -> None:
        self.epoch = epoch
        window = ReplayWindow(keys.replay_window, keys.replay_time)
        super().__init__(epoch, window)


class EpochKey:
    """A BatchKey whose keys change as they are used.

    epoch: of what we send. sent: the last packet id that was used in it.
    """

    bare = False
    id_size = WIRE_ID_SIZE
    tag_last = True
    aad_start = 0

    def __init__(self, keys: DataKeys) -> None:
        assert keys.peer_id is not None
        self.key_id = keys.key_id
        self.sent = 0
        self.style = style_of(keys.compression, fragment=keys.fragment)
        self._keys = keys
        self.header = data_v2_header(keys.key_id, keys.peer_id)
        self._limit = usage_limit(keys.cipher)
        self._sending = _Epoch(1, keys.encrypt.cipher_key, keys.cipher)
        first = _Epoch(1, keys.decrypt.cipher_key, keys.cipher)
        self._current = _Incoming(first, keys)
        self._retired: _Incoming | None = None
        self._future: list[_Incoming] = []
        self._look_ahead()

    @property
    def epoch(self) -> int:
        """The epoch that we send in."""
        return self._sending.number

    def seal_into(self, payload: memoryview, out: memoryview) -> int:
        """Encrypt into `out`; 0 when no packet id of any epoch is left."""
        sending, wire_id, count = self.take_ids(1, len(payload))
        if not count:
            return 0
        prefix = self.header + wire_id.to_bytes(WIRE_ID_SIZE)
        body = len(prefix)
        size = body + len(payload) + TAG_SIZE
        out[:body] = prefix
        sending.seal(sending.nonce(wire_id), payload, prefix, out[body:size])
        return size

    def take_ids(self, count: int, size: int) -> tuple[_Epoch, int, int]:
        """See BatchKey."""
        if self._worn_out() and self._sending.number < EPOCH_MAX:
            self._send_in(self._sending.number + 1)
        sending = self._sending
        count = min(count, COUNTER_MAX - self.sent)
        if self._limit:
            # as many as one by one would find it good for
            left = max(self._limit - sending.blocks - self.sent, 0)
            count = min(count, left // (blocks_of(size) + 1) + 1)
        first = sending.number << COUNTER_BITS | self.sent + 1
        self.sent += count
        sending.count(size, count)
        return sending, first, count

    def find(self, first: int, last: int) -> Incoming | None:
        """See BatchKey: an epoch that is not new, and the same of both."""
        number = first >> COUNTER_BITS
        if number == last >> COUNTER_BITS:
            for known in (self._current, self._retired):
                if known is not None and known.epoch.number == number:
                    return known
        return None

    def open_into(
        self,
        buffer: memoryview,
        size: int,
        header: int,
        out: memoryview,
        now: float,
    ) -> int:
        """Decrypt with the keys of the packet's epoch."""
        body = header + WIRE_ID_SIZE
        if size <= body + TAG_SIZE or header != len(self.header):
            raise MalformedPacketError("short-data", size)
        wire_id = int.from_bytes(buffer[header:body])
        found = self._find(wire_id >> COUNTER_BITS)
        if found is None:
            raise AuthenticationError("unknown-epoch")
        plain_size = size - body - TAG_SIZE
        try:
            found.epoch.open(
                found.epoch.nonce(wire_id),
                buffer[body:size],
                buffer[:body],
                out[:plain_size],
            )
        except InvalidTag:
            raise AuthenticationError("bad-tag") from None
        if found is not self._current and found is not self._retired:
            self._follow(found)
        if not found.window.accept(wire_id & COUNTER_MAX, now):
            raise AuthenticationError("replay")
        found.epoch.count(plain_size)
        return plain_size

    # --- sending

    def _worn_out(self) -> bool:
        """Say whether our key has done enough, or the peer's has.

        A peer that overuses its key is shown the next epoch: it follows.
        """
        sending, current = self._sending, self._current
        if self.sent >= COUNTER_MAX:
            return True
        if not self._limit:
            return False
        if sending.blocks + self.sent > self._limit:
            return True
        return (
            sending.number == current.epoch.number
            and current.epoch.blocks + current.window.top > self._limit
        )

    def _send_in(self, number: int) -> None:
        """Move to an epoch above the one in use, never back."""
        secret = self._sending.secret
        for _ in range(number - self._sending.number):
            secret = next_epoch(secret)
        self._sending = _Epoch(number, secret, self._keys.cipher)
        self.sent = 0

    # --- receiving

    def _find(self, number: int) -> _Incoming | None:
        current = self._current.epoch.number
        if number == current:
            return self._current
        if self._retired and number == self._retired.epoch.number:
            return self._retired
        if current < number <= min(current + FUTURE, FOLLOWED_MAX):
            return self._future[number - current - 1]
        return None

    def _follow(self, found: _Incoming) -> None:
        """The peer moved on, authentically: go with it, both ways."""
        self._retired, self._current = self._current, found
        if self._sending.number < found.epoch.number:
            self._send_in(found.epoch.number)
        self._look_ahead()

    def _look_ahead(self) -> None:
        """Have the keys of the epochs that the peer may jump to."""
        last = self._current.epoch
        ahead = [one for one in self._future if one.epoch.number > last.number]
        if ahead:
            last = ahead[-1].epoch
        while len(ahead) < FUTURE and last.number < EPOCH_MAX:
            last = _Epoch(
                last.number + 1, next_epoch(last.secret), self._keys.cipher
            )
            ahead.append(_Incoming(last, self._keys))
        self._future = ahead
