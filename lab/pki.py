"""Throw-away certificates and pre-shared keys for the lab's VPN servers."""

import datetime
import functools
import ipaddress
import secrets
from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

STATIC_KEY_BYTES = 256
STATIC_KEY_LINE = 16
_DAY = datetime.timedelta(days=1)

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and its private key, in PEM."""

    certificate: str
    key: str


@dataclass(frozen=True, slots=True)
class Pki:
    """A CA, with a server and a client that it knows."""

    ca: Identity
    server: Identity
    client: Identity


@functools.cache
def pki(name: str = "lab") -> Pki:
    """The PKI of that name, made once per process; another name, another CA."""
    ca = authority(f"{name} CA")
    return Pki(ca, issue("server", ca), issue("client", ca))


def authority(name: str, issuer: Identity | None = None) -> Identity:
    """A CA: a root, or one that an issuer vouches for."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    by, signer = _signer(issuer) if issuer else (_subject(name), key)
    certificate = (
        _builder(_subject(name), by, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .add_extension(usage, True)
        .sign(signer, hashes.SHA256())
    )
    return _identity(certificate, key)


def issue(
    name: str,
    issuer: Identity,
    *,
    unit: str = "",
    key: PrivateKey | None = None,
) -> Identity:
    """A server's (if that is its name) or a client's certificate.

    unit: its organizational unit. key: its own, else a fresh one.
    """
    by, signer = _signer(issuer)
    key = key or ec.generate_private_key(ec.SECP256R1())
    usages = ExtendedKeyUsageOID
    usage = usages.SERVER_AUTH if name == "server" else usages.CLIENT_AUTH
    names: list[x509.GeneralName] = [
        x509.DNSName(name),
        x509.IPAddress(ipaddress.IPv4Address("192.0.2.10")),
    ]
    key_usage = x509.KeyUsage(
        digital_signature=True,
        key_agreement=True,
        key_cert_sign=False,
        crl_sign=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        _builder(_subject(name, unit), by, key.public_key())
        .add_extension(
            x509.BasicConstraints(ca=False, path_length=None),
            True,
        )
        .add_extension(x509.ExtendedKeyUsage([usage]), False)
        .add_extension(key_usage, True)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .sign(signer, hashes.SHA256())
    )
    return _identity(certificate, key)


def revocations(issuer: Identity, *revoked: Identity, days: int = 30) -> str:
    """An issuer's CRL in PEM, good for so many days from now."""
    by, signer = _signer(issuer)
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by)
        .last_update(now - 2 * _DAY)
        .next_update(now + days * _DAY)
    )
    for one in revoked:
        certificate = x509.load_pem_x509_certificate(one.certificate.encode())
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(certificate.serial_number)
            .revocation_date(now - _DAY)
            .build()
        )
    crl = builder.sign(signer, hashes.SHA256())
    return crl.public_bytes(serialization.Encoding.PEM).decode()


def static_key() -> str:
    """A fresh 2048-bit key file, for tls-auth and tls-crypt."""
    digits = secrets.token_bytes(STATIC_KEY_BYTES).hex()
    width = 2 * STATIC_KEY_LINE
    lines = [digits[at : at + width] for at in range(0, len(digits), width)]
    return "\n".join(
        [
            "-----BEGIN OpenVPN Static key V1-----",
            *lines,
            "-----END OpenVPN Static key V1-----",
            "",
        ]
    )


def _subject(name: str, unit: str = "") -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
    if unit:
        oid = NameOID.ORGANIZATIONAL_UNIT_NAME
        attributes.append(x509.NameAttribute(oid, unit))
    return x509.Name(attributes)


def _signer(issuer: Identity) -> tuple[x509.Name, ec.EllipticCurvePrivateKey]:
    key = serialization.load_pem_private_key(issuer.key.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_pem_x509_certificate(issuer.certificate.encode())
    return certificate.subject, key


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 30 * _DAY)
    )


def _identity(certificate: x509.Certificate, key: PrivateKey) -> Identity:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Identity(certificate.public_bytes(pem).decode(), private.decode())
