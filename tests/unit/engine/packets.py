"""Keys of one negotiation, both sides of it, and packets to carry."""

import dataclasses

from qubes_vpn.crypto.keys import DataKeys, DirectionKeys
from qubes_vpn.engine.data_channel import PRIMARY, DataChannel
from qubes_vpn.engine.traffic import Traffic

KEY_SIZES = {"AES-128": 16, "AES-192": 24, "AES-256": 32, "CHACHA20": 32}


def direction(cipher: str, seed: int) -> DirectionKeys:
    size = KEY_SIZES[cipher.rpartition("-")[0]]
    return DirectionKeys(
        cipher_key=bytes([seed]) * size,
        hmac_key=bytes([seed + 1]) * 64,
        implicit_iv=bytes([seed + 2]) * 8,
    )


def key_pair(
    cipher: str = "AES-256-GCM", **fields
) -> tuple[DataKeys, DataKeys]:
    """Ours and the server's keys of one negotiation."""
    ours = DataKeys(
        **{
            "key_id": 0,
            "peer_id": 5,
            "cipher": cipher,
            "encrypt": direction(cipher, 10),
            "decrypt": direction(cipher, 20),
            **fields,
        }
    )
    return ours, dataclasses.replace(
        ours, encrypt=ours.decrypt, decrypt=ours.encrypt
    )


def channels(cipher: str = "AES-256-GCM", **fields):
    ours, theirs = key_pair(cipher, **fields)
    client, server = DataChannel(Traffic()), DataChannel(Traffic())
    client.install(PRIMARY, ours)
    server.install(PRIMARY, theirs)
    return client, server


def ipv4(
    payload: bytes = b"x" * 30, source: bytes = b"\x0a\x08\x00\x02"
) -> bytes:
    header = bytearray(20)
    header[0] = 0x45
    header[2:4] = (20 + len(payload)).to_bytes(2)
    header[12:16] = source
    return bytes(header) + payload


def ipv6(payload: bytes = b"x" * 30) -> bytes:
    header = bytearray(40)
    header[0] = 0x60
    header[4:6] = len(payload).to_bytes(2)
    return bytes(header) + payload
