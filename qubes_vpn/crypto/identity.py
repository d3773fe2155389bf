"""Loading our certificate and key, and a CA: PEM or PKCS#12.

Everything unusable is a ConfigError whose problem names the directive.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias

from cryptography import x509
from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    pkcs12,
)
from OpenSSL import crypto

from qubes_vpn.errors import ConfigError, Problem

PrivateKey: TypeAlias = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)

# What certificates, keys and lists that are none raise.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    InternalError,  # of OpenSSL, for a key of the wrong size
    x509.InvalidVersion,
    crypto.Error,
)
_PEM_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN (?:TRUSTED |X509 )?CERTIFICATE-----.*?"
    rb"-----END (?:TRUSTED |X509 )?CERTIFICATE-----",
    re.DOTALL,
)
_PEM_CRL: Final = re.compile(
    rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class LoadedIdentity:
    """Our certificate, the ones sent after it, its key, and extra CAs."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    key: PrivateKey = field(repr=False)


def refuse(directive: str, message: str) -> NoReturn:
    """Raise ConfigError with one problem of a directive."""
    raise ConfigError([Problem(directive, 0, 0, message)])


def load_pem_identity(
    certificate: bytes, chain: bytes, key: bytes, passphrase: bytes | None
) -> LoadedIdentity:
    """Load `cert`, `extra-certs` and `key`; they must belong together.

    Further certificates in `cert` are sent after the first.
    """
    leaf, *rest = _load_certificates("cert", certificate)
    if chain:
        rest.extend(_load_certificates("extra-certs", chain))
    private = load_private_key(key, passphrase)
    if not key_matches(leaf, private):
        refuse("key", "it is not the key of the certificate in `cert`")
    return LoadedIdentity(leaf, tuple(rest), private)


def load_pkcs12(content: bytes, passphrase: bytes | None) -> LoadedIdentity:
    """Load a PKCS#12 file: key, its certificate, and others as the chain."""
    try:
        bundle = pkcs12.load_pkcs12(content, passphrase)
    except UNREADABLE:
        why = (
            "wrong passphrase, or damaged"
            if passphrase
            else ("it needs a passphrase (askpass), or is damaged")
        )
        refuse("pkcs12", why)
    if bundle.cert is None or bundle.key is None:
        refuse("pkcs12", "it holds no private key with its certificate")
    private = _known_kind("pkcs12", bundle.key)
    chain = tuple(extra.certificate for extra in bundle.additional_certs)
    try:
        _check_with_openssl((bundle.cert.certificate, *chain))
    except UNREADABLE:
        refuse("pkcs12", "it holds a damaged certificate")
    return LoadedIdentity(bundle.cert.certificate, chain, private)


def load_private_key(key: bytes, passphrase: bytes | None) -> PrivateKey:
    """Load a PEM private key, encrypted or not."""
    try:
        private = load_pem_private_key(key, passphrase)
    except TypeError:
        if passphrase is None:
            refuse("key", "it is encrypted: askpass must give its passphrase")
        # A passphrase was given for a key that needs none: take the key.
        return load_private_key(key, None)
    except UNREADABLE:
        refuse("key", "wrong passphrase, or not a PEM private key")
    return _known_kind("key", private)


def is_encrypted(key: bytes) -> bool:
    """Say whether a PEM private key needs a passphrase."""
    try:
        load_pem_private_key(key, None)
    except TypeError:
        return True
    except UNREADABLE:
        return False
    return False


def pkcs12_is_encrypted(content: bytes) -> bool:
    """Say whether a PKCS#12 file needs a passphrase, or is damaged."""
    try:
        pkcs12.load_pkcs12(content, None)
    except UNREADABLE:
        return True
    return False


def key_matches(certificate: x509.Certificate, key: PrivateKey) -> bool:
    """Say whether the key is the certificate's."""
    try:
        public = certificate.public_key()
    except UNREADABLE:
        return False
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return public.public_bytes(*form) == key.public_key().public_bytes(*form)


def load_ca(content: bytes) -> list[crypto.X509]:
    """Load every PEM certificate of `ca`, with OpenSSL's leniency."""
    blocks = _PEM_CERTIFICATE.findall(content)
    if not blocks:
        refuse("ca", "it holds no PEM certificate")
    try:
        return [
            crypto.load_certificate(crypto.FILETYPE_PEM, block)
            for block in blocks
        ]
    except crypto.Error:
        refuse("ca", "it holds a damaged certificate")


def load_crls(content: bytes) -> list[x509.CertificateRevocationList]:
    """Load every PEM list of `crl-verify`; none at all is an error."""
    blocks = _PEM_CRL.findall(content)
    if not blocks:
        refuse("crl-verify", "it holds no PEM revocation list")
    openssl = crypto.X509Store()
    try:
        lists = [x509.load_pem_x509_crl(block) for block in blocks]
        for one in lists:
            openssl.add_crl(one)  # it must know it too
    except UNREADABLE:
        refuse("crl-verify", "it holds a damaged revocation list")
    return lists


def _load_certificates(
    directive: str, content: bytes
) -> list[x509.Certificate]:
    blocks = _PEM_CERTIFICATE.findall(content)
    if not blocks:
        refuse(directive, "it holds no PEM certificate")
    try:
        found = [x509.load_pem_x509_certificate(block) for block in blocks]
        _check_with_openssl(found)
    except UNREADABLE:
        refuse(directive, "it holds a damaged certificate")
    return found


def _check_with_openssl(certificates: Iterable[x509.Certificate]) -> None:
    """It is stricter in some things: one of UNREADABLE."""
    for one in certificates:
        crypto.X509.from_cryptography(one)


def _known_kind(directive: str, key: object) -> PrivateKey:
    if isinstance(key, PrivateKey):
        return key
    refuse(directive, "this kind of private key cannot be used in TLS")
