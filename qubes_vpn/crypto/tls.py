"""TLS over memory, with pyOpenSSL: what OpenVPN carries in P_CONTROL_V1.

A context trusts a CA, or fingerprints, or it cannot be made. Checks run in
OpenSSL's callback, so that a wrong peer gets an alert and nothing of ours.
There is no renegotiation, no ticket and no resumption.
"""

from datetime import UTC, datetime
from typing import Final

from cryptography import x509
from OpenSSL import SSL, crypto

from qubes_vpn.crypto import identity
from qubes_vpn.crypto.identity import LoadedIdentity, refuse
from qubes_vpn.crypto.tls_errors import tls_error, verify_error
from qubes_vpn.crypto.tls_names import (
    cipher_list,
    ciphersuites,
    group_names,
    pick_group,
)
from qubes_vpn.crypto.tls_settings import (
    TlsSettings,
    load_authorities,
    load_identity,
)
from qubes_vpn.crypto.verify import check_issuer, check_leaf
from qubes_vpn.errors import SessionError

__all__ = ["TlsContext", "TlsSession", "TlsSettings"]

_VERSIONS: Final = {
    "1.0": SSL.TLS1_VERSION,
    "1.1": SSL.TLS1_1_VERSION,
    "1.2": SSL.TLS1_2_VERSION,
    "1.3": SSL.TLS1_3_VERSION,
}
_MINIMUM: Final = "1.2"
_CHAIN_DEPTH: Final = 16
_RECORD_MAX: Final = 16384
_READ_SIZE: Final = 65536

_UNABLE_TO_GET_CRL: Final = 3
_REVOKED: Final = 23
# X509_V_ERR numbers that only say "I do not know the issuer, or it is no
# authority": with fingerprints alone, only the leaf matters.
_ISSUER_ERRORS: Final = frozenset({2, 18, 19, 20, 21, 27, 79})
# What parsing a certificate can raise.
_MALFORMED: Final = (
    ValueError,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    TypeError,  # a name's attribute that is a bit string
)


class _Verdict:
    """What the callback found out about one connection's peer."""

    __slots__ = ("error", "issuer_checked", "leaf_checked")

    def __init__(self) -> None:
        self.error: SessionError | None = None
        self.leaf_checked = False
        self.issuer_checked = False


class TlsContext:
    """Parsed settings: keys and certificates are loaded once.

    Raises ConfigError for anything unusable; its problems have the
    directive ("ca") in place of a file.
    """

    def __init__(self, settings: TlsSettings) -> None:
        """Load everything; a context that trusts anybody is refused."""
        self._settings = settings
        self._context = SSL.Context(SSL.TLS_METHOD)
        ours = load_identity(settings)
        authorities = load_authorities(settings, ours)
        fingerprints = settings.check.fingerprints
        self._verifies = not settings.is_server or settings.verify != "none"
        if self._verifies and not authorities and not fingerprints:
            refuse(
                "ca",
                "neither ca nor peer-fingerprint: anybody could be the peer",
            )
        self._fingerprint_only = not authorities
        self._set_options()
        self._set_versions()
        self._set_ciphers()
        if ours:
            _use_identity(self._context, ours, settings)
        elif settings.is_server:
            refuse("cert", "a server needs a certificate and a key")
        self._trust(authorities)

    def session(self, now_unix: float) -> "TlsSession":
        """Start one TLS connection; certificates are checked at that time."""
        store = self._context.get_cert_store()
        assert store is not None
        store.set_time(datetime.fromtimestamp(now_unix, UTC))
        verdict = _Verdict()
        connection = SSL.Connection(self._context, None)
        connection.set_app_data(verdict)
        if self._settings.is_server:
            connection.set_accept_state()
        else:
            connection.set_connect_state()
        return TlsSession(connection, verdict, self._settings)

    def _set_options(self) -> None:
        context = self._context
        context.set_options(
            SSL.OP_NO_TICKET
            | SSL.OP_NO_RENEGOTIATION
            | SSL.OP_NO_COMPRESSION
            | SSL.OP_CIPHER_SERVER_PREFERENCE
        )
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)

    def _set_versions(self) -> None:
        """Versions below 1.2 are never spoken, whatever a profile says."""
        settings = self._settings
        for directive, version in (
            ("tls-version-min", settings.version_min),
            ("tls-version-max", settings.version_max),
        ):
            if version and version not in _VERSIONS:
                refuse(directive, f"there is no TLS {version}")
        lowest = max(settings.version_min, _MINIMUM)
        if settings.version_max and settings.version_max < lowest:
            refuse("tls-version-max", f"it is below TLS {lowest}")
        self._context.set_min_proto_version(_VERSIONS[lowest])
        if settings.version_max:
            highest = _VERSIONS[settings.version_max]
            self._context.set_max_proto_version(highest)

    def _set_ciphers(self) -> None:
        settings, context = self._settings, self._context
        try:
            ciphers = cipher_list(settings.cipher, settings.cert_profile)
            context.set_cipher_list(ciphers)
        except SSL.Error:
            refuse("tls-cipher", f"{settings.cipher!r} names no known cipher")
        if settings.ciphersuites:
            suites = ciphersuites(settings.ciphersuites)
            # pyOpenSSL 25 cannot set them: then the outcome is checked.
            if hasattr(context, "set_tls13_ciphersuites"):
                context.set_tls13_ciphersuites(":".join(suites).encode())
        if settings.groups:
            self._set_group()

    def _set_group(self) -> None:
        settings, context = self._settings, self._context
        curve = pick_group(settings.groups, is_server=settings.is_server)
        if curve is not None:
            context.set_tmp_ecdh(curve)
        elif not _tells_group():
            refuse(
                "tls-groups",
                "this pyOpenSSL can only set secp256r1, secp384r1 or secp521r1"
                ", and does not tell which group was used",
            )

    def _trust(self, authorities: list[crypto.X509]) -> None:
        """Set what makes a peer trusted, and how it is asked."""
        settings, context = self._settings, self._context
        store = context.get_cert_store()
        assert store is not None
        for authority in authorities:
            store.add_cert(authority)
            if settings.is_server:
                context.add_client_ca(authority.to_cryptography())
        if settings.crl:
            for crl in identity.load_crls(settings.crl):
                store.add_crl(crl)
            flags = crypto.X509StoreFlags
            store.set_flags(flags.CRL_CHECK | flags.CRL_CHECK_ALL)
        context.set_verify_depth(_CHAIN_DEPTH)
        mode = SSL.VERIFY_NONE
        if self._verifies:
            mode = SSL.VERIFY_PEER
            if not (settings.is_server and settings.verify == "optional"):
                mode |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
        context.set_verify(mode, self._verify)

    def _verify(
        self,
        connection: SSL.Connection,
        certificate: crypto.X509,
        number: int,
        depth: int,
        preverified: int,
    ) -> bool:
        """Judge one certificate (or one error of it) for OpenSSL."""
        verdict: _Verdict = connection.get_app_data()
        if str(certificate.get_serial_number()) in self._settings.check.revoked:
            number, preverified = _REVOKED, 0
        if not preverified:
            if self._tolerates(number, depth):
                return True
            verdict.error = verdict.error or verify_error(number, depth)
            return False
        try:
            self._check(verdict, certificate, depth)
        except SessionError as error:
            verdict.error = verdict.error or error
            return False
        return True

    def _tolerates(self, number: int, depth: int) -> bool:
        if number == _UNABLE_TO_GET_CRL:
            # One list covers one issuer; the leaf's must be there.
            return depth > 0
        return (
            self._fingerprint_only
            and number != _REVOKED
            and (depth > 0 or number in _ISSUER_ERRORS)
        )

    def _check(
        self, verdict: _Verdict, certificate: crypto.X509, depth: int
    ) -> None:
        check = self._settings.check
        if depth > 1 or (depth == 1 and not check.verify_hash):
            return
        try:
            parsed = certificate.to_cryptography()
            if depth == 1:
                check_issuer(parsed, check)
                verdict.issuer_checked = True
            else:
                check_leaf(parsed, check)
                verdict.leaf_checked = True
        except _MALFORMED:
            raise SessionError(
                "bad-certificate", "the peer's certificate is malformed"
            ) from None


class TlsSession:
    """One TLS connection; bytes in, bytes out, no socket.

    Made by TlsContext.session. Errors are SessionError, whose detail begins
    with the directive concerned where one is; among the reasons:
    certificate-expired, certificate-not-yet-valid, certificate-revoked,
    crl-expired, crl-missing, unknown-ca, self-signed, wrong-name,
    wrong-usage, wrong-fingerprint, bad-name, no-certificate,
    weak-certificate, tls-version, tls-cipher, tls-alert:NAME, tls-closed,
    tls-error. After one, outgoing() has the alert for the peer.
    """

    def __init__(
        self,
        connection: SSL.Connection,
        verdict: _Verdict,
        settings: TlsSettings,
    ) -> None:
        """See TlsContext.session."""
        self._connection = connection
        self._verdict = verdict
        self._settings = settings
        self._done = False

    def feed(self, untrusted: bytes) -> None:
        """Take bytes of the peer."""
        if untrusted:
            self._connection.bio_write(untrusted)

    def outgoing(self) -> bytes:
        """Return and forget the bytes to send; also after an error."""
        parts = []
        while True:
            try:
                parts.append(self._connection.bio_read(_READ_SIZE))
            except SSL.WantReadError:
                return b"".join(parts)

    def handshake(self) -> bool:
        """Go on with the handshake; True once it is complete and checked."""
        if self._done:
            return True
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise self._verdict.error or tls_error(error) from None
        self._require_checks()
        self._require_suite()
        self._require_group()
        self._done = True
        return True

    def _require_checks(self) -> None:
        """No check may be skipped because its callback was not called."""
        if self._connection.get_peer_certificate() is None:
            if self._settings.is_server and self._settings.verify != "require":
                return
            raise SessionError("no-certificate", "the peer sent none")
        verdict, check = self._verdict, self._settings.check
        if not verdict.leaf_checked:
            raise SessionError("verify-failed", "the peer was not checked")
        if check.verify_hash and not verdict.issuer_checked:
            raise SessionError(
                "wrong-fingerprint", "verify-hash: there is no issuer"
            )

    def _require_suite(self) -> None:
        """No other suite than those of tls-ciphersuites may be used."""
        wanted = self._settings.ciphersuites
        if not wanted or self.version != "TLSv1.3":
            return
        if self.cipher not in ciphersuites(wanted):
            detail = f"tls-ciphersuites: the peer chose {self.cipher}"
            raise SessionError("tls-cipher", detail)

    def _require_group(self) -> None:
        """No other group than those of tls-groups may be used."""
        settings = self._settings
        if not settings.groups or pick_group(
            settings.groups, is_server=settings.is_server
        ):
            return
        name = self._connection.get_group_name() or "none"
        if name.lower() not in group_names(settings.groups):
            detail = f"tls-groups: the peer chose {name}"
            raise SessionError("tls-groups", detail)

    def read(self) -> bytes:
        """Return the plaintext of one TLS record; b"" when there is none.

        Raises SessionError "tls-closed" after the peer's close_notify.
        """
        try:
            return self._connection.recv(_RECORD_MAX)
        except SSL.WantReadError:
            return b""
        except SSL.Error as error:
            raise self._verdict.error or tls_error(error) from None

    def write(self, plaintext: bytes) -> None:
        """Encrypt plaintext; get it from outgoing()."""
        try:
            self._connection.sendall(plaintext)
        except SSL.Error as error:
            raise tls_error(error) from None

    def export(
        self, label: bytes, length: int, context: bytes | None = None
    ) -> bytes:
        """Return keying material (TLS-EKM), the same on both sides."""
        return self._connection.export_keying_material(label, length, context)

    def peer_certificate(self) -> x509.Certificate | None:
        """Return the peer's own certificate, which was checked, or None.

        The others that it sent are nobody's business: they may be anything.
        """
        leaf = self._connection.get_peer_certificate()
        return leaf.to_cryptography() if leaf else None

    @property
    def version(self) -> str:
        """The negotiated version, such as "TLSv1.3"."""
        return self._connection.get_protocol_version_name()

    @property
    def cipher(self) -> str:
        """The negotiated cipher's OpenSSL name; "" before there is one."""
        return self._connection.get_cipher_name() or ""


def _tells_group() -> bool:
    """Say whether the group of a session can be known, by this pyOpenSSL."""
    connection = SSL.Connection(SSL.Context(SSL.TLS_METHOD), None)
    try:
        return connection.get_group_name() is None
    except (AttributeError, NotImplementedError):
        return False


def _use_identity(
    context: SSL.Context,
    ours: LoadedIdentity,
    settings: TlsSettings,
) -> None:
    try:
        context.use_certificate(ours.certificate)
        context.use_privatekey(ours.key)
        if settings.ca or not settings.pkcs12:
            for extra in ours.chain:
                context.add_extra_chain_cert(extra)
    except SSL.Error as error:
        detail = tls_error(error).detail
        refuse("cert", f"OpenSSL refuses it ({detail})")
