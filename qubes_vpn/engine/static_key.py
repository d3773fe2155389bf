"""The data key of static-key mode: every packet is HMAC | IV | ciphertext.

No opcode stands before it. Inside: packet id 4 | unix time 4 | payload; the
time is when the sender began to count, so that ids may begin anew.
Source: OpenVPN 2 crypto.c (openvpn_encrypt_v1), packet_id.c (long form).
"""

import struct
from typing import Final

from qubes_vpn.crypto.cbc import CbcCipher
from qubes_vpn.crypto.iv import cbc_iv
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.replay import PairReplayWindow
from qubes_vpn.engine.inner import style_of
from qubes_vpn.errors import AuthenticationError, MalformedPacketError

_INSIDE: Final = struct.Struct("!II")
_ID_MAX: Final = 0xFFFFFFFF
_MICROSECOND: Final = 1_000_000


class StaticKey:
    """A DataKey that both sides have in a file, for ever."""

    bare = True
    epoch = 0

    def __init__(self, keys: DataKeys) -> None:
        self.key_id = keys.key_id
        self.sent = 0
        self.style = style_of(keys.compression, fragment=keys.fragment)
        self._time = int(keys.began) & _ID_MAX
        # no two sessions under this key make the same IVs
        self._began = int(keys.began * _MICROSECOND).to_bytes(8)
        self._iv_keys = keys.encrypt
        self._sealer = CbcCipher(keys.cipher, keys.digest, keys.encrypt)
        self._opener = CbcCipher(keys.cipher, keys.digest, keys.decrypt)
        self._window = PairReplayWindow(keys.replay_window, keys.replay_time)

    def seal_into(self, payload: memoryview, out: memoryview) -> int:
        """Encrypt into `out`; after the last id, count anew and later."""
        if self.sent == _ID_MAX:
            self.sent, self._time = 0, self._time + 1
        self.sent += 1
        inside = _INSIDE.pack(self.sent, self._time)
        iv = cbc_iv(self._iv_keys, int.from_bytes(inside), self._began)
        datagram = self._sealer.seal(b"".join((inside, payload)), iv)
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
        if len(plain) < _INSIDE.size:
            raise MalformedPacketError("short-data", size)
        packet_id, time = _INSIDE.unpack_from(plain)
        if not self._window.accept(time, packet_id, now):
            raise AuthenticationError("replay")
        plain_size = len(plain) - _INSIDE.size
        out[:plain_size] = plain[_INSIDE.size :]
        return plain_size
