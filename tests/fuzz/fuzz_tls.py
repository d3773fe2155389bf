"""Any flight of TLS is read, or is a SessionError; a changed one never serves.

Flights of a client and a server that trust each other, bent on their way, cut,
and bytes in their place. Where both sides are done, both saw the same bytes.
"""

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from qubes_vpn.crypto.tls import TlsContext, TlsSettings
from qubes_vpn.errors import SessionError

UNIX = 1_795_000_000.0
NOW = datetime.datetime.fromtimestamp(UNIX, datetime.UTC)
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM
HEADER = 5
SEEDS = (
    b"\0",
    b"\1" + bytes(100) + b"\1",
    b"\2" + bytes(600) + b"\x80",
    b"\3\x16\3\3\0\5\2\0\0\1\0",
    b"\4\x15\3\3\0\2\2\x28",
    b"\5\x17\3\3\0\x10" + bytes(16),
)


def settings(number, *, is_server):
    """Make a side: a certificate that the other one trusts."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\1")
    name = x509.Name.from_rfc4514_string("CN=a")
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), number)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, None)
        .public_bytes(PEM)
    )
    private = key.private_bytes(
        PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return TlsSettings(
        is_server=is_server,
        ca=certificate,
        certificate=certificate,
        key=private,
    )


CONTEXTS = [TlsContext(settings(7, is_server=one)) for one in (False, True)]


def bent(flight, mask):
    """Change what a mask says, but for the record's version."""
    changed = bytearray(flight)
    for at, value in enumerate(mask[: len(flight)]):
        changed[at] ^= value if at not in {1, 2} else 0
    return bytes(changed)


def one_input(data: bytes) -> None:
    """The first byte says which flight is bent, or replaced by the rest."""
    if not data:
        return
    victim, mask = data[0] % 6, data[1:]
    sessions = [context.session(UNIX) for context in CONTEXTS]
    done, changed, number = [False, False], False, 0
    try:
        for _ in range(4):
            for side in (0, 1):
                done[side] = sessions[side].handshake()
                flight = given = sessions[side].outgoing()
                if flight and number == victim:
                    given = bent(flight, mask) if data[0] < 128 else mask
                    changed = given != flight
                number += bool(flight)
                sessions[1 - side].feed(given)
        for session in sessions:
            while session.read():
                pass
    except SessionError as error:
        assert error.reason
        assert changed
        return
    assert not changed or not all(done) or victim > 2
    assert changed or all(done)
