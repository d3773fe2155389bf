"""TLS over memory, with pyOpenSSL: what OpenVPN carries in P_CONTROL_V1."""

from dataclasses import dataclass, field

from cryptography import x509

from qubes_vpn.crypto.verify import PeerCheck


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Everything that a TLS context is made of.

    ca, certificate, chain, key, crl: PEM; pkcs12: DER, instead of
    certificate and key (and of ca, when that is empty). passphrase: of key
    or pkcs12. version_min, version_max: "1.2", "1.3" or "". cipher,
    ciphersuites, groups, cert_profile: as the directives tls-cipher,
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


class TlsContext:
    """Parsed settings: keys and certificates are loaded once.

    Raises ConfigError whose problems name the directive ("ca: ...") where
    a file would stand, for anything unusable.
    """

    def __init__(self, settings: TlsSettings) -> None:
        """Load everything; a context that trusts anybody is refused."""
        raise NotImplementedError

    def session(self, now_unix: float) -> "TlsSession":
        """Start one TLS connection; certificates are checked at that time."""
        raise NotImplementedError


class TlsSession:
    """One TLS connection; bytes in, bytes out, no socket.

    Errors are SessionError with a reason slug: "certificate-expired",
    "certificate-not-yet-valid", "certificate-revoked", "crl-expired",
    "crl-missing", "unknown-ca", "self-signed", "wrong-name", "wrong-usage",
    "wrong-fingerprint", "no-certificate", "weak-certificate",
    "tls-version", "tls-cipher", "tls-alert:NAME", "tls-closed", "tls-error";
    the detail begins with the directive concerned.
    """

    def feed(self, untrusted: bytes) -> None:
        """Take bytes of the peer."""
        raise NotImplementedError

    def outgoing(self) -> bytes:
        """Return and forget the bytes to send; also after an error."""
        raise NotImplementedError

    def handshake(self) -> bool:
        """Go on with the handshake; True once it is complete and checked."""
        raise NotImplementedError

    def read(self) -> bytes:
        """Return the plaintext of one TLS record; b"" when there is none."""
        raise NotImplementedError

    def write(self, plaintext: bytes) -> None:
        """Encrypt plaintext; get it from outgoing()."""
        raise NotImplementedError

    def export(
        self, label: bytes, length: int, context: bytes | None = None
    ) -> bytes:
        """Return keying material (TLS-EKM), the same on both sides."""
        raise NotImplementedError

    def peer_chain(self) -> tuple[x509.Certificate, ...]:
        """Return the peer's certificates, its own first; () without any."""
        raise NotImplementedError

    @property
    def version(self) -> str:
        """The negotiated version, such as "TLSv1.3"."""
        raise NotImplementedError

    @property
    def cipher(self) -> str:
        """The negotiated cipher's OpenSSL name."""
        raise NotImplementedError
