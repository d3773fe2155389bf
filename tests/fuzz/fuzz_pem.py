"""Any file of certificates, keys or revoked ones loads, or is a ConfigError.

Of a profile, inline or beside it: PEM of each kind, PKCS#12, and what a
person is told of it. A problem is a sentence that quotes nothing of the file.
"""

import contextlib
import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import pkcs12

from qubes_vpn.crypto.facts import certificate_facts
from qubes_vpn.crypto.identity import is_encrypted, pkcs12_is_encrypted
from qubes_vpn.crypto.tls import TlsContext, TlsSettings
from qubes_vpn.errors import ConfigError

NOW = datetime.datetime.fromtimestamp(1_795_000_000, datetime.UTC)
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
NAME = x509.Name.from_rfc4514_string("CN=a")
CERTIFICATE = (
    x509.CertificateBuilder(NAME, NAME, KEY.public_key(), 7)
    .not_valid_before(NOW - DAY)
    .not_valid_after(NOW + DAY)
    .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    .sign(KEY, None)
)
REVOKED = (
    x509.RevokedCertificateBuilder(9, NOW - DAY).build(),
    x509.CertificateRevocationListBuilder(NAME, NOW - DAY, NOW + DAY),
)
CRL = REVOKED[1].add_revoked_certificate(REVOKED[0]).sign(KEY, None)
CA = CERTIFICATE.public_bytes(PEM)


def private(protection):
    """Print the key."""
    return KEY.private_bytes(PEM, serialization.PrivateFormat.PKCS8, protection)


PLAIN = private(serialization.NoEncryption())
# few rounds: what is tried is the parser
QUICK = (
    serialization.PrivateFormat.PKCS12.encryption_builder()
    .kdf_rounds(1)
    .key_cert_algorithm(pkcs12.PBES.PBESv2SHA256AndAES256CBC)
    .hmac_hash(hashes.SHA256())
    .build(b"p")
)
SEEDS = (
    b"a" + CA,
    b"a" + CA.replace(b"BEGIN CERT", b"BEGIN TRUSTED CERT") + CA,
    b"c" + CA,
    b"k" + PLAIN,
    b"k-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n"
    b"-----END ENCRYPTED PRIVATE KEY-----\n",
    b"k-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n"
    b"DEK-Info: AES-128-CBC,00\n\nMAA=\n-----END RSA PRIVATE KEY-----\n",
    b"r" + CRL.public_bytes(PEM),
    b"p"
    + pkcs12.serialize_key_and_certificates(
        b"a", KEY, CERTIFICATE, [CERTIFICATE], QUICK
    ),
    b"p"
    + pkcs12.serialize_key_and_certificates(
        None, KEY, CERTIFICATE, None, serialization.NoEncryption()
    ),
)
DER = {
    b"A": ("CERTIFICATE", CERTIFICATE),
    b"C": ("CERTIFICATE", CERTIFICATE),
    b"R": ("X509 CRL", CRL),
}
_A, _C, _R = (
    kind + one.public_bytes(serialization.Encoding.DER)
    for kind, (_, one) in DER.items()
)
SEEDS += (
    *(_A, _C, _R),
    # found: a list's version 0, a title of bits, a name OpenSSL cannot read,
    # a key of another kind's size
    _R.replace(b"\2\1\1", b"\2\1\0", 1),
    _C.replace(b"\x04\x03\x0c\1a", b"\x04\x0c\3\1a", 1),
    _C.replace(b"\x04\x03\x0c\1a", b"\x04\x03\x29\1a", 1),
    b"k" + PLAIN.replace(b"K2Vw", b"K2Vv"),
)


def armoured(kind, content):
    """Give the PEM of something that is DER, so that changes go inside."""
    import base64

    label, _ = DER[kind]
    body = base64.encodebytes(content).decode()
    text = f"-----BEGIN {label}-----\n{body}-----END {label}-----\n"
    return text.encode()


def one_input(data: bytes) -> None:
    """Load as what the first byte says, all as a connection would."""
    kind, content = data[:1], data[1:]
    if kind in DER:
        kind, content = kind.lower(), armoured(kind, content)
    for fact in certificate_facts(content):
        assert f"{fact.subject}{fact.issuer}{fact.key}".isprintable()
    is_encrypted(content), pkcs12_is_encrypted(content)
    fields = {
        b"a": {"ca": content},
        b"c": {"ca": CA, "certificate": content, "key": PLAIN},
        b"k": {"ca": CA, "certificate": CA, "key": content, "passphrase": b"p"},
        b"r": {"ca": CA, "crl": content},
        b"p": {"pkcs12": content, "passphrase": b"p"},
    }.get(kind, {})
    try:
        context = TlsContext(TlsSettings(**fields))
    except ConfigError as error:
        (problem,) = error.problems
        assert problem.message.isascii()
        assert len(problem.message) < 100
        return
    with contextlib.suppress(ConfigError):
        context.session(NOW.timestamp()).handshake()
