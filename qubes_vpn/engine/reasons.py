"""Why a session ends: stable slugs, their codes, and one sentence each.

The handbook has an anchor for every code. A slug that is not here is
reported with code QV-500 and the detail it came with.
"""

from typing import Final

OTHER: Final = "QV-500"

# fmt: off
# ruff: noqa: E501 -- a table reads as a table
REASONS: Final[dict[str, tuple[str, str]]] = {
    "no-answer": ("QV-501", "the server does not answer: a wrong address (remote), a network that wants a login first, or a wrong key (tls-auth, tls-crypt) look the same"),
    "handshake-timeout": ("QV-502", "the server answered, but TLS did not complete within hand-window"),
    "no-push-reply": ("QV-503", "the server accepted TLS, but sent no settings"),
    "renegotiation-timeout": ("QV-504", "a new key could not be negotiated within hand-window"),
    "ping-restart": ("QV-505", "nothing came from the server for ping-restart seconds"),
    "ping-exit": ("QV-506", "nothing came from the server for ping-exit seconds"),
    "inactive": ("QV-507", "no traffic for the time that inactive allows"),
    "session-timeout": ("QV-508", "the session reached its session-timeout"),
    "auth-failed": ("QV-510", "the server refused the user name or password (auth-user-pass); many providers give separate ones for VPN connections, and limit the number of devices"),
    "auth-temp": ("QV-511", "the server refuses us for now"),
    "auth-token": ("QV-512", "the server no longer accepts the session token; the credentials are used again"),
    "auth-pending-timeout": ("QV-513", "the second factor was not confirmed in time"),
    "challenge": ("QV-514", "the server asks a question before it lets us in"),
    "unanswered": ("QV-515", "a question was not answered in time"),
    "wrong-passphrase": ("QV-516", "the private key cannot be opened with this passphrase"),
    "server-restart": ("QV-520", "the server asks us to connect again"),
    "server-halt": ("QV-521", "the server ended the session for good"),
    "server-exit": ("QV-522", "the server went down"),
    "server-info": ("QV-523", "the server has a message"),
    "bad-push": ("QV-530", "the server's settings cannot be used"),
    "push-too-long": ("QV-531", "the server's settings do not end"),
    "cipher-refused": ("QV-532", "no common cipher: see data-ciphers and data-ciphers-fallback"),
    "bad-key-method": ("QV-533", "the server's key exchange is malformed"),
    "epoch-without-peer-id": ("QV-534", "the server wants the epoch data format, but gave no peer-id"),
    "prf-unavailable": ("QV-535", "this system forbids the key derivation that the server needs"),
    "certificate-expired": ("QV-540", "the server's certificate has expired; is this qube's clock right?"),
    "certificate-not-yet-valid": ("QV-541", "the server's certificate is not valid yet; is this qube's clock right?"),
    "certificate-revoked": ("QV-542", "the server's certificate is revoked (crl-verify)"),
    "unknown-ca": ("QV-543", "the server's certificate is not from the authority in ca"),
    "wrong-name": ("QV-544", "the server's certificate has another name (verify-x509-name)"),
    "wrong-usage": ("QV-545", "the server's certificate is not one for servers (remote-cert-tls)"),
    "wrong-fingerprint": ("QV-546", "the server's certificate has another fingerprint (peer-fingerprint, verify-hash)"),
    "tls-version": ("QV-547", "no common TLS version (tls-version-min, tls-version-max)"),
    "tls-closed": ("QV-548", "the server closed the TLS connection"),
    "crl-unusable": ("QV-549", "the revocation list cannot be read, or is no list (crl-verify)"),
    "crl-missing": ("QV-549", "there is no revocation list of the certificate's issuer (crl-verify)"),
    "crl-expired": ("QV-549", "the revocation list has expired (crl-verify)"),
    "crl-not-yet-valid": ("QV-549", "the revocation list is not valid yet (crl-verify); is this qube's clock right?"),
    "crl-changed": ("QV-549", "the revocation list is another one (crl-verify)"),
    "stopped": ("QV-599", "stopped"),
}
# fmt: on


def code_of(reason: str) -> str:
    """Return the code of a slug; what follows a colon does not count."""
    return REASONS.get(reason.partition(":")[0], (OTHER, ""))[0]


def sentence_of(reason: str) -> str:
    """Return the sentence of a slug; the slug itself when unknown."""
    return REASONS.get(reason.partition(":")[0], ("", reason))[1]
