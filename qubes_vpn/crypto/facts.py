"""What a person wants to know of a certificate, without judging it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from qubes_vpn.crypto.identity import UNREADABLE

_BLOCK: Final = re.compile(
    rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----[^-]*-----END [^-]*-----"
)
NAME_MAX: Final = 200  # characters of a name that are shown
_ATTRIBUTES: Final = {NameOID.EMAIL_ADDRESS: "emailAddress"}


@dataclass(frozen=True, slots=True)
class CertificateFacts:
    """One certificate. Times are seconds since 1970.

    key: such as "RSA 2048" or "EC secp256r1". bits: of an RSA key, else 0.
    digest: of its signature, such as sha256; "" when it is part of the key.
    """

    subject: str
    issuer: str
    not_before: int
    not_after: int
    key: str
    bits: int
    digest: str
    fingerprint: str


def certificate_facts(pem: bytes) -> tuple[CertificateFacts, ...]:
    """Read every certificate that can be read."""
    return tuple(_facts(pem))


def _facts(pem: bytes) -> Iterator[CertificateFacts]:
    for block in _BLOCK.findall(pem):
        try:
            one = x509.load_pem_x509_certificate(block)
            key, bits = _key(one)
            yield CertificateFacts(
                subject=_name(one.subject),
                issuer=_name(one.issuer),
                not_before=int(one.not_valid_before_utc.timestamp()),
                not_after=int(one.not_valid_after_utc.timestamp()),
                key=key,
                bits=bits,
                digest=_digest(one),
                fingerprint=one.fingerprint(hashes.SHA256()).hex(":"),
            )
        except UNREADABLE:
            continue


def _name(name: x509.Name) -> str:
    text = name.rfc4514_string(_ATTRIBUTES)[:NAME_MAX]
    return text if text.isprintable() else ascii(text)


def _key(one: x509.Certificate) -> tuple[str, int]:
    try:
        key = one.public_key()
    except UNREADABLE:
        return "unknown", 0
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}", key.key_size
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"EC {key.curve.name}", 0
    return type(key).__name__.removesuffix("PublicKey").removeprefix("_"), 0


def _digest(one: x509.Certificate) -> str:
    try:
        digest = one.signature_hash_algorithm
    except UNREADABLE:
        return "unknown"
    return digest.name if digest else ""
