"""Data channel keys: what the engine derives and a data plane uses."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DirectionKeys:
    """Keys for one direction.

    cipher_key: as long as the cipher says. hmac_key: the CBC ciphers' MAC
    key, cut to the digest's size. implicit_iv: 8 bytes that follow the
    packet id in an AEAD nonce (the first of the HMAC key bytes).
    """

    cipher_key: bytes = field(repr=False)
    hmac_key: bytes = field(repr=False, default=b"")
    implicit_iv: bytes = field(repr=False, default=b"")


@dataclass(frozen=True, slots=True)
class DataKeys:
    """Everything that a data plane needs to use one key.

    key_id: 0..7. peer_id: 24 bits, or None for P_DATA_V1. cipher and digest
    by OpenVPN's names. compression: the framing of the inner packet, one
    of engine.inner.STYLES; those with "-rx" are unpacked.
    epoch: the 2.7 epoch data format; then encrypt and decrypt hold the
    32-byte epoch secrets in cipher_key.
    fragment: contents begin with the header of the `fragment` directive.
    static: static-key mode; packets have no opcode byte, and their packet
    id is followed by a time (4 bytes). began: unix seconds of that time.
    """

    key_id: int
    peer_id: int | None
    cipher: str
    encrypt: DirectionKeys = field(repr=False)
    decrypt: DirectionKeys = field(repr=False)
    digest: str = ""
    compression: str = ""
    epoch: bool = False
    replay_window: int = 64
    replay_time: int = 15
    static: bool = False
    began: float = 0.0
    fragment: bool = False
