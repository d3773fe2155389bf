"""One data channel key in use: packet ids, nonces, tags, replay window.

Wire layout of AEAD, after the header of 1 (P_DATA_V1) or 4 bytes (P_DATA_V2):

    packet id 4 | tag 16 | ciphertext

The nonce is the packet id and the 8 bytes of the implicit IV; additional
data are the header, for P_DATA_V2 alone, and the packet id. Source: OpenVPN 2
crypto.c, ssl.c (handle_data_channel_packet).
"""

from typing import Final, Protocol

from qubes_vpn.crypto.aead import TAG_SIZE, InvalidTag, cipher_spec
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.replay import ReplayWindow
from qubes_vpn.engine.aead_half import AeadHalf, Incoming
from qubes_vpn.engine.cbc_key import CbcKey, StaticKey
from qubes_vpn.engine.epoch_key import EpochKey
from qubes_vpn.engine.inner import style_of
from qubes_vpn.errors import AuthenticationError, MalformedPacketError
from qubes_vpn.wire.data import (
    DATA_V2_HEADER_SIZE,
    data_v1_header,
    data_v2_header,
)

PACKET_ID_SIZE: Final = 4
PACKET_ID_MAX: Final = 0xFFFFFFFF
# What open_into needs beyond the datagram, in the same buffer.
OPEN_ROOM: Final = TAG_SIZE


class DataKey(Protocol):
    """One key, both directions.

    sent: the last packet id that was used. style: of inner.style_of. bare:
    no opcode stands before its packets.
    """

    key_id: int
    sent: int
    style: str

    @property
    def bare(self) -> bool:
        """Whether packets have no opcode: static-key mode."""

    @property
    def epoch(self) -> int:
        """The epoch that it encrypts in; 0 without epochs."""

    def seal_into(self, payload: memoryview, out: memoryview) -> int:
        """Encrypt into `out`; return the datagram's size, 0 if refused."""

    def open_into(
        self,
        buffer: memoryview,
        size: int,
        header: int,
        out: memoryview,
        now: float,
    ) -> int:
        """Authenticate, decrypt, check for replay; return the size.

        header: size of the datagram's header, by its opcode.
        Raises MalformedPacketError "short-data", AuthenticationError
        "bad-tag" or "bad-hmac" (first) and "replay" (after).
        """


class BatchKey(DataKey, Protocol):
    """A DataKey whose packets may be sealed and opened many at a time.

    header: what every datagram that we send begins with; a wire id of
    id_size bytes follows, and a tag and the content, or with tag_last the
    tag behind the content. Additional data are header and wire id, from byte
    aad_start on.
    """

    header: bytes
    id_size: int
    tag_last: bool
    aad_start: int

    def take_ids(self, count: int, size: int) -> tuple[AeadHalf, int, int]:
        """Use up to `count` packet ids, for contents of `size` bytes.

        Returns the cipher, the first wire id, and how many follow each other
        from there: fewer than asked for where the cipher changes, 0 when
        there are none any more.
        """

    def find(self, first: int, last: int) -> Incoming | None:
        """Say what opens packets whose wire ids are first to last.

        None: they have to be opened one by one.
        """


def make_data_key(keys: DataKeys) -> DataKey:
    """Take keys into use, in the way that their cipher and format want."""
    if keys.static:
        return StaticKey(keys)
    if keys.epoch:
        return EpochKey(keys)
    if cipher_spec(keys.cipher).kind == "cbc":
        return CbcKey(keys, _header(keys))
    return AeadKey(keys)


def batch_key(key: DataKey | None) -> BatchKey | None:
    """Give the key if it is for batches: not one that wraps its contents."""
    if isinstance(key, (AeadKey, EpochKey)) and not key.style:
        return key
    return None


def _header(keys: DataKeys) -> bytes:
    if keys.peer_id is None:
        return data_v1_header(keys.key_id)
    return data_v2_header(keys.key_id, keys.peer_id)


class AeadKey:
    """A key of an AEAD cipher; a BatchKey."""

    bare = False
    epoch = 0
    id_size = PACKET_ID_SIZE
    tag_last = False

    def __init__(self, keys: DataKeys) -> None:
        self.key_id = keys.key_id
        self.sent = 0
        self.style = style_of(keys.compression, fragment=keys.fragment)
        self.header = _header(keys)
        self.aad_start = 1 if keys.peer_id is None else 0
        self.outgoing = AeadHalf(keys.cipher, keys.encrypt)
        self.incoming = Incoming(
            AeadHalf(keys.cipher, keys.decrypt),
            ReplayWindow(keys.replay_window, keys.replay_time),
        )
        self._encrypt_iv = keys.encrypt.implicit_iv
        self._decrypt_iv = keys.decrypt.implicit_iv

    def take_ids(self, count: int, size: int) -> tuple[AeadHalf, int, int]:
        """See BatchKey."""
        del size
        first = self.sent + 1
        count = min(count, PACKET_ID_MAX - self.sent)
        self.sent += count
        return self.outgoing, first, count

    def find(self, first: int, last: int) -> Incoming | None:
        """See BatchKey."""
        del first, last
        return self.incoming

    def seal_into(self, payload: memoryview, out: memoryview) -> int:
        """Encrypt into `out`, which must not overlap the payload.

        Returns 0 once every packet id has been used: a nonce is never used
        twice.
        """
        packet_id = self.sent + 1
        if packet_id > PACKET_ID_MAX:
            return 0
        self.sent = packet_id
        wire_id = packet_id.to_bytes(PACKET_ID_SIZE)
        prefix = self.header + wire_id
        id_end = len(prefix)
        body = id_end + TAG_SIZE
        size = body + len(payload)
        # The cipher's tag comes last, OpenVPN's first: into its place after.
        self.outgoing.seal(
            wire_id + self._encrypt_iv,
            payload,
            prefix[self.aad_start :],
            out[body : size + TAG_SIZE],
        )
        out[:id_end] = prefix
        out[id_end:body] = out[size : size + TAG_SIZE]
        return size

    def open_into(
        self,
        buffer: memoryview,
        size: int,
        header: int,
        out: memoryview,
        now: float,
    ) -> int:
        """Decrypt; writes to buffer[size : size + OPEN_ROOM] too."""
        id_end = header + PACKET_ID_SIZE
        body = id_end + TAG_SIZE
        if size <= body:
            raise MalformedPacketError("short-data", size)
        wire_id = bytes(buffer[header:id_end])
        buffer[size : size + TAG_SIZE] = buffer[id_end:body]
        plain_size = size - body
        try:
            self.incoming.half.open(
                wire_id + self._decrypt_iv,
                buffer[body : size + TAG_SIZE],
                buffer[0 if header == DATA_V2_HEADER_SIZE else header : id_end],
                out[:plain_size],
            )
        except InvalidTag:
            raise AuthenticationError("bad-tag") from None
        if not self.incoming.window.accept(int.from_bytes(wire_id), now):
            raise AuthenticationError("replay")
        return plain_size
