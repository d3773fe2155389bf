"""What a TLS context is made of, and how its parts are loaded."""

from dataclasses import dataclass, field

from OpenSSL import crypto

from qubes_vpn.crypto import identity
from qubes_vpn.crypto.identity import LoadedIdentity, refuse
from qubes_vpn.crypto.verify import PeerCheck


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Everything that a TLS context is made of.

    ca, certificate, chain, key, crl: PEM; pkcs12: DER, instead of
    certificate and key; its other certificates are the CA when there is
    none. passphrase: of key or pkcs12. version_min, version_max: "1.2",
    "1.3" or "". cipher, ciphersuites, groups, cert_profile: as tls-cipher,
    tls-ciphersuites, tls-groups, tls-cert-profile say them. verify: of
    a server: require, optional or none.
    """

    is_server: bool = False
    ca: bytes = b""
    certificate: bytes = b""
    chain: bytes = b""
    key: bytes = field(repr=False, default=b"")
    passphrase: bytes | None = field(repr=False, default=None)
    pkcs12: bytes = field(repr=False, default=b"")
    crl: bytes = b""
    version_min: str = "1.2"
    version_max: str = ""
    cipher: str = ""
    ciphersuites: str = ""
    groups: str = ""
    cert_profile: str = "legacy"
    check: PeerCheck = field(default_factory=PeerCheck)
    verify: str = "require"


def load_identity(settings: TlsSettings) -> LoadedIdentity | None:
    """Load our certificate and key, from PEM or PKCS#12; None without."""
    if settings.pkcs12:
        return identity.load_pkcs12(settings.pkcs12, settings.passphrase)
    if not settings.certificate and not settings.key:
        return None
    if not settings.certificate:
        refuse("cert", "there is a key, but no certificate")
    if not settings.key:
        refuse("key", "there is a certificate, but no key")
    return identity.load_pem_identity(
        settings.certificate,
        settings.chain,
        settings.key,
        settings.passphrase,
    )


def load_authorities(
    settings: TlsSettings, ours: LoadedIdentity | None
) -> list[crypto.X509]:
    """Load the CA; without one, that of the PKCS#12 file, or nothing."""
    if settings.ca:
        return identity.load_ca(settings.ca)
    if settings.pkcs12 and ours and not settings.check.fingerprints:
        return [crypto.X509.from_cryptography(cert) for cert in ours.chain]
    return []
