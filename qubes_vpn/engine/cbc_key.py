"""Data keys of a CBC cipher with an HMAC: packets HMAC | IV | ciphertext.

Inside, before the payload, is a packet id. That of servers without AEAD has
4 bytes. In static-key mode 4 bytes of unix time follow, when the sender began
to count, so that ids may begin anew; and no opcode stands before its packets.
Source: OpenVPN 2 crypto.c (openvpn_encrypt_v1), packet_id.c (long form).
"""

import struct
from typing import Final

from qubes_vpn.crypto.cbc import CbcCipher
from qubes_vpn.crypto.iv import cbc_iv
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.replay import PairReplayWindow, ReplayWindow
from qubes_vpn.engine.inner import style_of
from qubes_vpn.errors import AuthenticationError, MalformedPacketError

_ID_MAX: Final = 0xFFFFFFFF
_MICROSECOND: Final = 1_000_000


class _Key:
    """What both modes have in common; a DataKey."""

    epoch = 0
    _inside: struct.Struct

    def __init__(self, keys: DataKeys, header: bytes) -> None:
        self.key_id = keys.key_id
        self.sent = 0
        self.style = style_of(keys.compression, fragment=keys.fragment)
        self._header = header
        self._iv_keys = keys.encrypt
        self._sealer = CbcCipher(keys.cipher, keys.digest, keys.encrypt)
        self._opener = CbcCipher(keys.cipher, keys.digest, keys.decrypt)

    def _next(self) -> tuple[bytes, bytes]:
        """Give the next packet id as it is inside, and the IV."""
        raise NotImplementedError

    def _accept(self, number: tuple[int, ...], now: float) -> bool:
        raise NotImplementedError

    def seal_into(self, payload: memoryview, out: memoryview) -> int:
        """Encrypt into `out`; 0 once every packet id has been used."""
        inside, iv = self._next()
        if not inside:
            return 0
        datagram = self._header + self._sealer.seal(
            b"".join((inside, payload)), iv
        )
        out[: len(datagram)] = datagram
        return len(datagram)

    def open_into(
        self,
        buffer: memoryview,
        size: int,
        header: int,
        out: memoryview,
        now: float,
    ) -> int:
        """Check the HMAC, decrypt, check for replay."""
        plain = self._opener.open(bytes(buffer[header:size]))
        plain_size = len(plain) - self._inside.size
        if plain_size < 0:
            raise MalformedPacketError("short-data", size)
        if not self._accept(self._inside.unpack_from(plain), now):
            raise AuthenticationError("replay")
        out[:plain_size] = plain[self._inside.size :]
        return plain_size


class CbcKey(_Key):
    """A negotiated key."""

    bare = False
    _inside = struct.Struct("!I")

    def __init__(self, keys: DataKeys, header: bytes) -> None:
        super().__init__(keys, header)
        self._window = ReplayWindow(keys.replay_window, keys.replay_time)

    def _next(self) -> tuple[bytes, bytes]:
        if self.sent == _ID_MAX:
            return b"", b""
        self.sent += 1
        iv = cbc_iv(self._iv_keys, self.sent)
        return self._inside.pack(self.sent), iv

    def _accept(self, number: tuple[int, ...], now: float) -> bool:
        return self._window.accept(number[0], now)


class StaticKey(_Key):
    """A key that both sides have in a file, for ever."""

    bare = True
    _inside = struct.Struct("!II")

    def __init__(self, keys: DataKeys) -> None:
        super().__init__(keys, b"")
        self._time = int(keys.began) & _ID_MAX
        # no two sessions under this key make the same IVs
        self._began = int(keys.began * _MICROSECOND).to_bytes(8)
        self._window = PairReplayWindow(keys.replay_window, keys.replay_time)

    def _next(self) -> tuple[bytes, bytes]:
        """After the last id, count anew and later."""
        if self.sent == _ID_MAX:
            self.sent, self._time = 0, self._time + 1
        self.sent += 1
        inside = self._inside.pack(self.sent, self._time)
        return inside, cbc_iv(
            self._iv_keys, int.from_bytes(inside), self._began
        )

    def _accept(self, number: tuple[int, ...], now: float) -> bool:
        packet_id, time = number
        return self._window.accept(time, packet_id, now)
