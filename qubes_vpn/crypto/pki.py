"""A small certificate authority: certificates in, certificates out.

Nothing is stored here; `cli/pki.py` keeps the files. Keys are EC P-256, which
every TLS library speaks, or Ed25519.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Clocks of two machines differ; a certificate that is not valid yet is the
# first thing that a new user would meet.
_BACKDATE: Final = timedelta(hours=1)

_Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


class Algorithm(StrEnum):
    """What kind of key to make."""

    P256 = "p256"
    ED25519 = "ed25519"


class Usage(StrEnum):
    """What a certificate is for; it is refused for anything else."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its private key (PKCS 8, not encrypted), as PEM."""

    certificate: bytes
    key: bytes = field(repr=False)
    serial: int
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Revoked:
    """An entry of a revocation list."""

    serial: int
    when: datetime


def make_authority(
    name: str, algorithm: Algorithm, now: datetime, days: int
) -> Issued:
    """Make a self-signed authority with the common name `name`."""
    key = _generate(algorithm)
    subject = _subject(name)
    builder = (
        _builder(subject, subject, key, now, days)
        .add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        .add_extension(_key_usage(authority=True), critical=True)
    )
    return _issued(builder, key, key)


def issue(
    authority: Issued,
    name: str,
    usage: Usage,
    algorithm: Algorithm,
    now: datetime,
    days: int,
) -> Issued:
    """Make a key and a certificate of `authority` for one peer.

    It cannot outlive the authority. A server's name is a host name or
    an address, and is its alternative name too, for other software.
    """
    ca, ca_key = _load(authority)
    key = _generate(algorithm)
    eku = {
        Usage.SERVER: ExtendedKeyUsageOID.SERVER_AUTH,
        Usage.CLIENT: ExtendedKeyUsageOID.CLIENT_AUTH,
    }[usage]
    builder = (
        _builder(
            _subject(name), ca.subject, key, now, days, ca.not_valid_after_utc
        )
        .add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([eku]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                ca_key.public_key()
            ),
            critical=False,
        )
    )
    if usage is Usage.SERVER:
        alternative = x509.SubjectAlternativeName([_general_name(name)])
        builder = builder.add_extension(alternative, critical=False)
    return _issued(builder, key, ca_key)


def make_crl(
    authority: Issued,
    revoked: Sequence[Revoked],
    number: int,
    now: datetime,
    days: int,
) -> bytes:
    """Sign the list of what is revoked, as PEM. number: grows each time."""
    ca, ca_key = _load(authority)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - _BACKDATE)
        .next_update(now + timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(
                ca_key.public_key()
            ),
            critical=False,
        )
    )
    for entry in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(entry.serial)
            .revocation_date(entry.when)
            .build()
        )
    crl = builder.sign(ca_key, _digest(ca_key))
    return crl.public_bytes(serialization.Encoding.PEM)


def load_issued(certificate: bytes, key: bytes) -> Issued:
    """Read back a pair. Raises ValueError when the two do not belong."""
    loaded = x509.load_pem_x509_certificate(certificate)
    private = serialization.load_pem_private_key(key, None)
    if private.public_key() != loaded.public_key():
        raise ValueError("the private key is not the certificate's")
    return Issued(
        certificate, key, loaded.serial_number, loaded.not_valid_after_utc
    )


def _load(authority: Issued) -> tuple[x509.Certificate, _Key]:
    key = serialization.load_pem_private_key(authority.key, None)
    if not isinstance(key, _Key):
        raise ValueError("the authority's key is neither P-256 nor Ed25519")
    return x509.load_pem_x509_certificate(authority.certificate), key


def _generate(algorithm: Algorithm) -> _Key:
    if algorithm is Algorithm.ED25519:
        return ed25519.Ed25519PrivateKey.generate()
    return ec.generate_private_key(ec.SECP256R1())


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: _Key,
    now: datetime,
    days: int,
    at_most: datetime | None = None,
) -> x509.CertificateBuilder:
    end = now + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(min(end, at_most) if at_most else end)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
            critical=False,
        )
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _issued(
    builder: x509.CertificateBuilder, key: _Key, signer: _Key
) -> Issued:
    certificate = builder.sign(signer, _digest(signer))
    return Issued(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.serial_number,
        certificate.not_valid_after_utc,
    )


def _digest(signer: _Key) -> hashes.SHA256 | None:
    # Ed25519 has its digest built in
    if isinstance(signer, ed25519.Ed25519PrivateKey):
        return None
    return hashes.SHA256()
