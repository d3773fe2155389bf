"""One key session: reliability layer, TLS and key method 2, for one key id.

It serves both sides: `is_server` says which part it plays. The control
channel (session.py) owns it, feeds it packets that the wrap has
authenticated, and sends what its reliability layer has due.
Source: OpenVPN 2 ssl.c, tls_process_state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from qubes_vpn.crypto import prf
from qubes_vpn.crypto.aead import cipher_spec
from qubes_vpn.crypto.keys import DataKeys
from qubes_vpn.crypto.tls import TlsSession
from qubes_vpn.engine.reliable import Frame, Reliable
from qubes_vpn.errors import LocalStateError, MalformedPacketError, SessionError
from qubes_vpn.wire.control import decode_early_negotiation
from qubes_vpn.wire.key_method import (
    KeyMethodMessage,
    decode_key_method,
    encode_key_method,
)
from qubes_vpn.wire.opcode import Opcode

KEY_ID_MAX: Final = 7
# What a P_CONTROL_WKC_V1 carries even if nothing is left of the packet size.
PAYLOAD_MIN: Final = 16


def next_key_id(key_id: int) -> int:
    """Return the key id after this one: 0 only first, then 1..7 again."""
    return key_id % KEY_ID_MAX + 1


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """TLS is complete, and the peer's certificate is the right one."""


@dataclass(frozen=True, slots=True)
class KeysExchanged:
    """Both sides have said their key method 2; data keys can be made."""

    peer: KeyMethodMessage


@dataclass(frozen=True, slots=True)
class Record:
    """The plaintext of one TLS record after key method 2."""

    plaintext: bytes


KeyEvent: TypeAlias = HandshakeDone | KeysExchanged | Record


@dataclass(frozen=True, slots=True)
class KeySuite:
    """What was negotiated about the data channel, but for the secrets.

    ekm: keys from TLS-EKM instead of the TLS 1.0 PRF. The rest as in
    DataKeys.
    """

    cipher: str
    digest: str = "SHA1"
    peer_id: int | None = None
    ekm: bool = False
    epoch: bool = False
    compression: str = ""
    replay_window: int = 64
    replay_time: int = 15
    fragment: bool = False


class KeySession:
    """A TLS connection on its way to data keys, and what it says later.

    hello: called when our key method 2 message is due.
    first: the opcode of our first packet, a reset; None when the resets
    were exchanged without state.
    payload_max: bytes of TLS in one packet. wkc_size: of the wrapped client
    key, 0 without tls-crypt-v2 (and always 0 for a server).
    """

    def __init__(
        self,
        key_id: int,
        tls: TlsSession,
        reliable: Reliable,
        hello: Callable[[], KeyMethodMessage],
        *,
        is_server: bool,
        first: Opcode | None,
        payload_max: int,
        wkc_size: int = 0,
    ) -> None:
        self.key_id = key_id
        self.tls = tls
        self.reliable = reliable
        self._hello = hello
        self._is_server = is_server
        self._payload_max = payload_max
        self._wkc_size = wkc_size
        self._wkc_wanted = False
        self._started = first is None
        self._handshaken = False
        self._ours: KeyMethodMessage | None = None
        self._peers: KeyMethodMessage | None = None
        self._unsent: list[bytes] = []
        if first is not None:
            reliable.queue(first, b"")

    @property
    def established(self) -> bool:
        """Whether key method 2 is complete, so that messages may flow."""
        return self._ours is not None and self._peers is not None

    def say(self, plaintext: bytes) -> None:
        """Send one message as a TLS record, as soon as it may be sent."""
        self._unsent.append(plaintext)
        self._flush()

    def process(self) -> list[KeyEvent]:
        """Move TLS on with what arrived; queue what it has to say.

        Raises SessionError when TLS or key method 2 fails; an alert to the
        peer is then queued.
        """
        while (frame := self.reliable.take()) is not None:
            self._accept(frame)
        if not self._started:
            # only our reset was sent: once it is acknowledged, TLS begins
            if not self.reliable.empty:
                return []
            self._started = True
        events: list[KeyEvent] = []
        try:
            self._advance(events)
        finally:
            self._queue_tls()
        return events

    def _accept(self, frame: Frame) -> None:
        match frame.opcode:
            case Opcode.P_CONTROL_HARD_RESET_SERVER_V2 if self._wkc_size:
                self._wkc_wanted = decode_early_negotiation(frame.payload)
            case Opcode.P_CONTROL_V1 | Opcode.P_CONTROL_WKC_V1:
                if frame.payload:
                    self.tls.feed(frame.payload)
            case _:
                pass  # a reset: that it came is all it says

    def _advance(self, events: list[KeyEvent]) -> None:
        if not self._handshaken:
            if not self.tls.handshake():
                return
            self._handshaken = True
            events.append(HandshakeDone())
            if not self._is_server:
                self._say_hello()
        while record := self.tls.read():
            if self._peers is None:
                events.append(self._take_hello(record))
            else:
                events.append(Record(record))
        self._flush()

    def _say_hello(self) -> None:
        self._ours = self._hello()
        self.tls.write(encode_key_method(self._ours))

    def _take_hello(self, untrusted: bytes) -> KeysExchanged:
        try:
            peers = decode_key_method(untrusted, from_client=self._is_server)
        except MalformedPacketError as error:
            raise SessionError("bad-key-method", str(error)) from None
        self._peers = peers
        if self._is_server:
            self._say_hello()
        return KeysExchanged(peers)

    def _flush(self) -> None:
        if not self.established:
            return
        for plaintext in self._unsent:
            self.tls.write(plaintext)
        self._unsent.clear()
        self._queue_tls()

    def _queue_tls(self) -> None:
        """Cut what TLS wants to send into packets of the right size."""
        outgoing = self.tls.outgoing()
        while outgoing:
            opcode, size = Opcode.P_CONTROL_V1, self._payload_max
            if self._wkc_wanted:
                self._wkc_wanted = False
                opcode = Opcode.P_CONTROL_WKC_V1
                size = max(size - self._wkc_size, PAYLOAD_MIN)
            self.reliable.queue(opcode, outgoing[:size])
            outgoing = outgoing[size:]

    def data_keys(
        self, suite: KeySuite, our_sid: bytes, peer_sid: bytes
    ) -> DataKeys:
        """Derive the data channel keys; both messages must be there.

        Raises SessionError "epoch-without-peer-id" or "prf-unavailable".
        """
        if suite.epoch and suite.peer_id is None:
            raise SessionError("epoch-without-peer-id")
        key2 = self._key2(suite.ekm, our_sid, peer_sid)
        if suite.epoch:
            encrypt, decrypt = prf.epoch_secrets(
                key2, is_server=self._is_server
            )
        else:
            encrypt, decrypt = prf.direction_keys(
                key2,
                is_server=self._is_server,
                cipher=suite.cipher,
                digest=suite.digest,
            )
        return DataKeys(
            self.key_id,
            suite.peer_id,
            suite.cipher,
            encrypt,
            decrypt,
            "" if cipher_spec(suite.cipher).kind == "aead" else suite.digest,
            suite.compression,
            suite.epoch,
            suite.replay_window,
            suite.replay_time,
            fragment=suite.fragment,
        )

    def _key2(self, ekm: bool, our_sid: bytes, peer_sid: bytes) -> bytes:  # noqa: FBT001
        if self._ours is None or self._peers is None:
            raise LocalStateError("data keys before key method 2")
        if ekm:
            return self.tls.export(prf.EKM_LABEL, prf.KEY2_SIZE)
        ours, peers = self._ours.source, self._peers.source
        if self._is_server:
            return prf.key2_from_prf(peers, ours, peer_sid, our_sid)
        return prf.key2_from_prf(ours, peers, our_sid, peer_sid)
