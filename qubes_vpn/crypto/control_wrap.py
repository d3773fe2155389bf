"""Control wraps: plain, tls-auth, tls-crypt, tls-crypt-v2, dynamic.

Each authenticates, then checks the replay packet id, then parses. One wrap
serves one peer: it owns the packet id that it sends and the window of those
that it received, and may carry several key sessions.
Source: OpenVPN 2 ssl_pkt.c, tls_crypt.c, crypto.c (openvpn_encrypt_v1).
"""

import hmac
from typing import Final, Protocol

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from qubes_vpn.crypto.aead import digest_name, digest_size
from qubes_vpn.crypto.prf import KeyBlock, split_key2
from qubes_vpn.crypto.replay import PairReplayWindow
from qubes_vpn.errors import (
    AuthenticationError,
    LocalStateError,
    MalformedPacketError,
)
from qubes_vpn.wire.control import (
    HEADER_SIZE,
    ControlPacket,
    decode_body,
    encode_body,
)
from qubes_vpn.wire.keyfile import (
    SERVER_KEY_SIZE,
    STATIC_KEY_SIZE,
    WKC_MAX,
    WKC_MIN,
)
from qubes_vpn.wire.opcode import (
    DATA_OPCODES,
    Opcode,
    first_byte,
    split_first_byte,
)

DYNAMIC_TLS_CRYPT_LABEL: Final = b"EXPORTER-OpenVPN-dynamic-tls-crypt"
# The first packet id of a tls-crypt-v2 client, and of a server that knows
# it: "I understand early negotiation". Source: OpenVPN 2 ssl_pkt.h.
EARLY_NEG_START: Final = 0x0F000000
EARLY_NEG_MASK: Final = 0xFF000000

METADATA_USER: Final = 0
METADATA_TIMESTAMP: Final = 1

PACKET_ID_SIZE: Final = 8
TAG_SIZE: Final = 32
_IV_SIZE: Final = 16
_AES_KEY_SIZE: Final = 32
_PACKET_ID_MAX: Final = 0xFFFFFFFF

_WKC_OPCODES: Final = frozenset(
    {Opcode.P_CONTROL_HARD_RESET_CLIENT_V3, Opcode.P_CONTROL_WKC_V1}
)


class ControlWrap(Protocol):
    """Turns control packets into datagrams and back."""

    @property
    def overhead(self) -> int:
        """How many bytes the wrap adds to header and body."""
        ...

    def wrap(self, packet: ControlPacket, now_unix: float) -> bytes:
        """Return the datagram; each call has a replay packet id of its own."""
        ...

    def unwrap(self, untrusted: bytes, now_unix: float) -> ControlPacket:
        """Authenticate, check for a replay, and parse a datagram.

        Raises AuthenticationError "bad-hmac" or "replay", and
        MalformedPacketError.
        """
        ...


class _PacketIds:
    """The sender's side of replay protection: (time, id), never twice."""

    def __init__(self, start: int = 0) -> None:
        self._time = 0
        self._id = start

    def take(self, now_unix: float) -> bytes:
        """Return the next packet id: id and unix time, 4 bytes each.

        The time is that of the first one, until the ids run out.
        """
        if not self._time or self._id == _PACKET_ID_MAX:
            self._time = max(int(now_unix), self._time + 1)
            self._id %= _PACKET_ID_MAX
        self._id += 1
        return self._id.to_bytes(4) + self._time.to_bytes(4)


def _header(packet: ControlPacket) -> bytes:
    first = first_byte(packet.opcode, packet.key_id)
    return bytes((first,)) + packet.session_id


def _split_header(untrusted: bytes) -> tuple[Opcode, int, bytes]:
    """Return opcode, key id and session id of a control datagram."""
    if not untrusted:
        raise MalformedPacketError("truncated-header", 0)
    opcode, key_id = split_first_byte(untrusted[0])
    if opcode in DATA_OPCODES:
        raise MalformedPacketError("not-control", 0)
    if len(untrusted) < HEADER_SIZE:
        raise MalformedPacketError("truncated-header", len(untrusted))
    session_id = untrusted[1:HEADER_SIZE]
    if not any(session_id):
        raise MalformedPacketError("zero-session-id", 1)
    return opcode, key_id, session_id


def _check_replay(
    window: PairReplayWindow, packet_id: bytes, now_unix: float
) -> None:
    number = int.from_bytes(packet_id[:4])
    time = int.from_bytes(packet_id[4:])
    if not window.accept(time, number, now_unix):
        raise AuthenticationError("replay")


class PlainWrap:
    """No wrap: opcode, key id and session id, then the body."""

    overhead = 0

    def wrap(self, packet: ControlPacket, now_unix: float) -> bytes:
        """Return the datagram; the time is not used."""
        del now_unix
        return _header(packet) + encode_body(packet)

    def unwrap(self, untrusted: bytes, now_unix: float) -> ControlPacket:
        """Parse a datagram; nothing authenticates it."""
        del now_unix
        opcode, key_id, session_id = _split_header(untrusted)
        return decode_body(opcode, key_id, session_id, untrusted[HEADER_SIZE:])


class _Mac:
    """HMAC: the key is taken in once, not for each packet of a stranger."""

    def __init__(self, key: bytes, digest: str) -> None:
        self._keyed = hmac.new(key, digestmod=digest)

    def tag(self, content: bytes) -> bytes:
        """Return the tag of one packet."""
        one = self._keyed.copy()
        one.update(content)
        return one.digest()

    def check(self, tag: bytes, content: bytes) -> None:
        """Raise AuthenticationError "bad-hmac" for another tag."""
        if not hmac.compare_digest(tag, self.tag(content)):
            raise AuthenticationError("bad-hmac")


class TlsAuthWrap:
    """tls-auth: an HMAC over the whole packet.

    Layout: opcode and session id, 9 bytes; HMAC; packet id and time, 8;
    body. The HMAC is over packet id, time, opcode, session id, body.
    """

    def __init__(
        self,
        key: bytes,
        direction: int | None,
        digest: str = "SHA1",
        *,
        window: int = 64,
        seconds: float = 15,
        start: int = 0,
    ) -> None:
        """key: 256 bytes. direction: ours, 0, 1 or None (bidirectional).

        start: the packet id before the first one sent.
        """
        first, second = split_key2(key)
        name = digest_name(digest)
        if not name:
            raise LocalStateError("tls-auth needs a digest")
        size = digest_size(digest)
        self._size = size
        ours, theirs = {
            0: (first, second),
            1: (second, first),
            None: (first, first),
        }[direction]
        self._sent = _Mac(ours.hmac[:size], name)
        self._received = _Mac(theirs.hmac[:size], name)
        self._packet_ids = _PacketIds(start)
        self._window = PairReplayWindow(window, seconds)

    @property
    def overhead(self) -> int:
        """How many bytes the wrap adds to header and body."""
        return self._size + PACKET_ID_SIZE

    def wrap(self, packet: ControlPacket, now_unix: float) -> bytes:
        """Return the datagram."""
        header, body = _header(packet), encode_body(packet)
        packet_id = self._packet_ids.take(now_unix)
        tag = self._sent.tag(packet_id + header + body)
        return header + tag + packet_id + body

    def unwrap(self, untrusted: bytes, now_unix: float) -> ControlPacket:
        """Authenticate, check for a replay, and parse a datagram."""
        opcode, key_id, session_id = _split_header(untrusted)
        id_start = HEADER_SIZE + self._size
        body_start = id_start + PACKET_ID_SIZE
        if len(untrusted) < body_start:
            raise MalformedPacketError("truncated-wrap", len(untrusted))
        tag = untrusted[HEADER_SIZE:id_start]
        packet_id = untrusted[id_start:body_start]
        body = untrusted[body_start:]
        content = packet_id + untrusted[:HEADER_SIZE] + body
        self._received.check(tag, content)
        _check_replay(self._window, packet_id, now_unix)
        return decode_body(opcode, key_id, session_id, body)


class _TlsCryptKey:
    """AES-256-CTR under a synthetic IV that is an HMAC-SHA256."""

    def __init__(self, block: KeyBlock) -> None:
        aes = algorithms.AES(block.cipher[:_AES_KEY_SIZE])
        # a new context costs more than a packet does in an old one
        self._stream = Cipher(aes, modes.CTR(bytes(_IV_SIZE))).encryptor()
        self._mac = _Mac(block.hmac[:TAG_SIZE], "sha256")

    def seal(self, clear: bytes, secret: bytes) -> tuple[bytes, bytes]:
        """Return (tag over both, ciphertext of the secret part)."""
        tag = self._mac.tag(clear + secret)
        return tag, self._ctr(tag, secret)

    def open(self, clear: bytes, tag: bytes, ciphertext: bytes) -> bytes:
        """Return the secret part; raises AuthenticationError "bad-hmac"."""
        secret = self._ctr(tag, ciphertext)
        self._mac.check(tag, clear + secret)
        return secret

    def _ctr(self, tag: bytes, content: bytes) -> bytes:
        self._stream.reset_nonce(tag[:_IV_SIZE])
        return self._stream.update(content)


class TlsCryptWrap:
    """tls-crypt: the body is encrypted, all of it authenticated.

    Layout: opcode and session id, 9 bytes; packet id and time, 8; tag, 32;
    ciphertext of the body.
    """

    overhead = PACKET_ID_SIZE + TAG_SIZE

    def __init__(
        self,
        key: bytes,
        *,
        is_server: bool,
        window: int = 64,
        seconds: float = 15,
        start: int = 0,
    ) -> None:
        """key: 256 bytes. start: the packet id before the first one sent."""
        first, second = split_key2(key)
        ours, theirs = (first, second) if is_server else (second, first)
        self._send_key = _TlsCryptKey(ours)
        self._receive_key = _TlsCryptKey(theirs)
        self._packet_ids = _PacketIds(start)
        self._window = PairReplayWindow(window, seconds)

    def wrap(self, packet: ControlPacket, now_unix: float) -> bytes:
        """Return the datagram."""
        clear = _header(packet) + self._packet_ids.take(now_unix)
        tag, ciphertext = self._send_key.seal(clear, encode_body(packet))
        return clear + tag + ciphertext

    def unwrap(self, untrusted: bytes, now_unix: float) -> ControlPacket:
        """Authenticate, check for a replay, and parse a datagram."""
        opcode, key_id, session_id = _split_header(untrusted)
        tag_start = HEADER_SIZE + PACKET_ID_SIZE
        body_start = tag_start + TAG_SIZE
        if len(untrusted) < body_start:
            raise MalformedPacketError("truncated-wrap", len(untrusted))
        clear = untrusted[:tag_start]
        tag = untrusted[tag_start:body_start]
        body = self._receive_key.open(clear, tag, untrusted[body_start:])
        _check_replay(self._window, clear[HEADER_SIZE:], now_unix)
        return decode_body(opcode, key_id, session_id, body)


class TlsCryptV2ClientWrap(TlsCryptWrap):
    """tls-crypt-v2 of a client: some packets carry the wrapped key (WKc).

    It follows P_CONTROL_HARD_RESET_CLIENT_V3 and P_CONTROL_WKC_V1, outside
    of what is authenticated here: `overhead` does not count it.
    """

    def __init__(
        self, key: bytes, wkc: bytes, *, window: int = 64, seconds: float = 15
    ) -> None:
        """key: 256 bytes, and the same key wrapped for the server."""
        super().__init__(
            key,
            is_server=False,
            window=window,
            seconds=seconds,
            start=EARLY_NEG_START,
        )
        self._wkc = wkc

    @property
    def wkc_size(self) -> int:
        """Size of the wrapped client key, in bytes."""
        return len(self._wkc)

    def wrap(self, packet: ControlPacket, now_unix: float) -> bytes:
        """Return the datagram, with WKc where the opcode says so."""
        datagram = super().wrap(packet, now_unix)
        if packet.opcode in _WKC_OPCODES:
            return datagram + self._wkc
        return datagram


class TlsCryptV2ServerWrap(TlsCryptWrap):
    """tls-crypt-v2 of a server, once the client's key is known.

    A WKc that comes again is cut off and not looked at.
    """

    def __init__(
        self,
        key: bytes,
        *,
        window: int = 64,
        seconds: float = 15,
        start: int = 0,
    ) -> None:
        """key: the client's, 256 bytes (see unwrap_client_key)."""
        super().__init__(
            key, is_server=True, window=window, seconds=seconds, start=start
        )

    def unwrap(self, untrusted: bytes, now_unix: float) -> ControlPacket:
        """Authenticate, check for a replay, and parse a datagram."""
        if untrusted and split_first_byte(untrusted[0])[0] in _WKC_OPCODES:
            untrusted, _ = split_wkc(untrusted)
        return super().unwrap(untrusted, now_unix)


def packet_id_of(untrusted: bytes) -> int:
    """Return the replay packet id of a tls-crypt datagram, 0 if too short.

    Not authenticated: look at it after unwrap has succeeded.
    """
    return int.from_bytes(untrusted[HEADER_SIZE : HEADER_SIZE + 4])


def dynamic_tls_crypt_key(ekm: bytes, static_key: bytes | None) -> bytes:
    """Return the key of the dynamic tls-crypt: for a TlsCryptWrap.

    ekm: 256 bytes of TLS-EKM with DYNAMIC_TLS_CRYPT_LABEL, of the session's
    first TLS connection. static_key: of tls-auth, tls-crypt or
    tls-crypt-v2, None with a plain wrap. It protects every later key
    session (key_id above 0).
    """
    if static_key is None:
        return ekm
    number = int.from_bytes(ekm) ^ int.from_bytes(static_key)
    return number.to_bytes(len(ekm))


def split_wkc(untrusted: bytes) -> tuple[bytes, bytes]:
    """Cut a datagram into what is wrapped and the WKc at its end.

    WKc's last 2 bytes are its length, those included. Raises
    MalformedPacketError "bad-wkc-length".
    """
    length = int.from_bytes(untrusted[-2:])
    start = len(untrusted) - length
    if start < HEADER_SIZE or length < WKC_MIN or length > WKC_MAX:
        raise MalformedPacketError("bad-wkc-length", len(untrusted) - 2)
    return untrusted[:start], untrusted[start:]


def wrap_client_key(server_key: bytes, key: bytes, metadata: bytes) -> bytes:
    """Return WKc: a client's key, encrypted for the server.

    Layout: tag, 32 bytes; ciphertext of key (256) and metadata; length of
    all, 2. The tag is over length, key and metadata. server_key: 128 bytes.
    metadata: type byte (0 user, 1 timestamp) and content.
    """
    assert len(key) == STATIC_KEY_SIZE
    length = TAG_SIZE + len(key) + len(metadata) + 2
    assert length <= WKC_MAX
    tag, ciphertext = _server_key(server_key).seal(
        length.to_bytes(2), key + metadata
    )
    return tag + ciphertext + length.to_bytes(2)


def unwrap_client_key(
    server_key: bytes, untrusted_wkc: bytes
) -> tuple[bytes, bytes]:
    """Return (client key, metadata) of a WKc as split_wkc returns it.

    Raises AuthenticationError "bad-wkc".
    """
    tag, length = untrusted_wkc[:TAG_SIZE], untrusted_wkc[-2:]
    try:
        content = _server_key(server_key).open(
            length, tag, untrusted_wkc[TAG_SIZE:-2]
        )
    except AuthenticationError:
        raise AuthenticationError("bad-wkc") from None
    return content[:STATIC_KEY_SIZE], content[STATIC_KEY_SIZE:]


def timestamp_metadata(now_unix: float) -> bytes:
    """Return the metadata that says when a client key was made."""
    return bytes((METADATA_TIMESTAMP,)) + int(now_unix).to_bytes(8)


def metadata_time(untrusted: bytes) -> int | None:
    """Return the unix time of a timestamp metadata, or None."""
    if len(untrusted) == 9 and untrusted[0] == METADATA_TIMESTAMP:
        return int.from_bytes(untrusted[1:], signed=True)
    return None


def _server_key(server_key: bytes) -> _TlsCryptKey:
    assert len(server_key) == SERVER_KEY_SIZE
    half = SERVER_KEY_SIZE // 2
    return _TlsCryptKey(KeyBlock(server_key[:half], server_key[half:]))
