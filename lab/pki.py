"""Throw-away certificates and pre-shared keys for the lab's VPN servers."""

import datetime
import functools
import ipaddress
import secrets
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

STATIC_KEY_BYTES = 256
STATIC_KEY_LINE = 16
_DAY = datetime.timedelta(days=1)


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
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"{name} CA")
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
    certificate = (
        _builder(subject, subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .add_extension(usage, True)
        .sign(key, hashes.SHA256())
    )
    server = ExtendedKeyUsageOID.SERVER_AUTH
    client = ExtendedKeyUsageOID.CLIENT_AUTH
    return Pki(
        _identity(certificate, key),
        _issue("server", server, certificate, key),
        _issue("client", client, certificate, key),
    )


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


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
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


def _issue(
    name: str,
    usage: x509.ObjectIdentifier,
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
) -> Identity:
    key = ec.generate_private_key(ec.SECP256R1())
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
        _builder(_subject(name), ca.subject, key.public_key())
        .add_extension(
            x509.BasicConstraints(ca=False, path_length=None),
            True,
        )
        .add_extension(x509.ExtendedKeyUsage([usage]), False)
        .add_extension(key_usage, True)
        .add_extension(x509.SubjectAlternativeName(names), False)
        .sign(ca_key, hashes.SHA256())
    )
    return _identity(certificate, key)


def _identity(
    certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey
) -> Identity:
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return Identity(certificate.public_bytes(pem).decode(), private.decode())
