"""A data key of the epoch format of OpenVPN 2.7.

Wire layout after the header of 4 bytes (P_DATA_V2 alone):

    epoch 2 | packet id 6 | ciphertext | tag 16

The header, epoch and packet id are additional data; the nonce is epoch,
packet id and 4 zero bytes, xor the epoch's implicit IV of 12 bytes. Each
side moves to a next epoch when its key has done enough, and follows the
other. Source: OpenVPN 2.7 crypto_epoch.c, crypto.c, ssl.c (init_epoch_keys).
"""

from typing import Final

from qubes_vpn.crypto.aead import (
    TAG_SIZE,
    AeadCipher,
    InvalidTag,
    usage_limit,
)
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.prf import epoch_keys, next_epoch
from qubes_vpn.crypto.replay import ReplayWindow
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
_BLOCK_SIZE: Final = 16
_PADDING_BITS: Final = 32


class _Epoch:
    """The keys of one epoch, one direction. blocks: what they have done."""

    __slots__ = ("_iv", "blocks", "cipher", "number", "secret")

    def __init__(self, number: int, secret: bytes, cipher: str) -> None:
        self.number = number
        self.secret = secret
        keys = epoch_keys(secret, cipher)
        self.cipher = AeadCipher(cipher, keys)
        self._iv = int.from_bytes(keys.implicit_iv)
        self.blocks = 0

    def nonce(self, wire_id: int) -> bytes:
        return (self._iv ^ wire_id << _PADDING_BITS).to_bytes(12)

    def count(self, size: int) -> None:
        self.blocks += (size + _BLOCK_SIZE - 1) // _BLOCK_SIZE


class _Incoming:
    """An epoch that the peer may send in, and what came in it."""

    __slots__ = ("epoch", "window")

    def __init__(self, epoch: _Epoch, keys: DataKeys) -> None:
        self.epoch = epoch
        self.window = ReplayWindow(keys.replay_window, keys.replay_time)


class EpochKey:
    """A DataKey whose keys change as they are used.

    epoch: of what we send. sent: the last packet id that was used in it.
    """

    bare = False

    def __init__(self, keys: DataKeys) -> None:
        assert keys.peer_id is not None
        self.key_id = keys.key_id
        self.sent = 0
        self.style = style_of(keys.compression, fragment=keys.fragment)
        self._keys = keys
        self._header = data_v2_header(keys.key_id, keys.peer_id)
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
        if self._worn_out() and self._sending.number < EPOCH_MAX:
            self._send_in(self._sending.number + 1)
        if self.sent >= COUNTER_MAX:
            return 0
        self.sent += 1
        sending = self._sending
        wire_id = sending.number << COUNTER_BITS | self.sent
        prefix = self._header + wire_id.to_bytes(WIRE_ID_SIZE)
        body = len(prefix)
        size = body + len(payload) + TAG_SIZE
        out[:body] = prefix
        sending.cipher.seal(
            sending.nonce(wire_id), payload, prefix, out[body:size]
        )
        sending.count(len(payload))
        return size

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
        if size <= body + TAG_SIZE or header != len(self._header):
            raise MalformedPacketError("short-data", size)
        wire_id = int.from_bytes(buffer[header:body])
        found = self._find(wire_id >> COUNTER_BITS)
        if found is None:
            raise AuthenticationError("unknown-epoch")
        plain_size = size - body - TAG_SIZE
        try:
            found.epoch.cipher.open(
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
