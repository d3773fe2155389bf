"""OpenSSL's errors as SessionError: a slug, and the directive concerned."""

import re
from typing import Final

from OpenSSL import SSL

from qubes_vpn.errors import SessionError

# X509_V_ERR_* -> slug, what to look at.
_VERIFY: Final = {
    2: ("unknown-ca", "ca: the peer's certificate has another issuer"),
    3: ("crl-missing", "crl-verify: no list of the certificate's issuer"),
    7: ("bad-signature", "ca: a certificate's signature is wrong"),
    8: ("crl-unusable", "crl-verify: the list's signature is wrong"),
    9: (
        "certificate-not-yet-valid",
        "the peer's certificate is not valid yet: check the clock",
    ),
    10: (
        "certificate-expired",
        "the peer's certificate has expired: check the clock",
    ),
    11: (
        "crl-not-yet-valid",
        "crl-verify: the list is not valid yet: check the clock",
    ),
    12: ("crl-expired", "crl-verify: the list has expired: check the clock"),
    18: ("self-signed", "ca: the peer's certificate is self-signed"),
    19: ("unknown-ca", "ca: the peer's root certificate is not in it"),
    20: ("unknown-ca", "ca: the peer's certificate has another issuer"),
    21: ("unknown-ca", "ca: the peer's certificate cannot be verified"),
    22: ("chain-too-long", "the peer's chain of certificates is too long"),
    23: ("certificate-revoked", "crl-verify: the certificate is revoked"),
    25: ("chain-too-long", "ca: path length exceeded"),
    26: ("wrong-usage", "the peer's certificate is for another purpose"),
    27: ("unknown-ca", "ca: the peer's certificate is not trusted"),
    66: ("weak-certificate", "tls-cert-profile: the peer's key is too small"),
    67: ("weak-certificate", "tls-cert-profile: an issuer's key is too small"),
    68: ("weak-certificate", "tls-cert-profile: a signature is too weak"),
    79: ("invalid-ca", "ca: an issuer may not issue certificates"),
}

# Parts of OpenSSL's reason texts -> slug, what to look at.
_REASONS: Final = (
    ("unsupported protocol", "tls-version", "tls-version-min, -max"),
    ("wrong version number", "tls-version", "tls-version-min, -max"),
    ("no protocols available", "tls-version", "tls-version-min, -max"),
    ("version too low", "tls-version", "tls-version-min"),
    ("no shared cipher", "tls-cipher", "tls-cipher, tls-ciphersuites"),
    ("no ciphers available", "tls-cipher", "tls-cipher"),
    ("did not return a certificate", "no-certificate", "the peer sent none"),
    ("no suitable key share", "tls-groups", "tls-groups"),
    ("no suitable groups", "tls-groups", "tls-groups"),
    ("ee key too small", "weak-certificate", "tls-cert-profile"),
    ("ca md too weak", "weak-certificate", "tls-cert-profile"),
)

# What an alert of the peer says about our own settings.
_ALERTS: Final = {
    "unknown-ca": "cert: the peer does not know its issuer",
    "bad-certificate": "cert: the peer refuses it",
    "certificate-expired": "cert: the peer says that it has expired",
    "certificate-revoked": "cert: the peer says that it is revoked",
    "certificate-required": "cert: the peer wants one",
    "protocol-version": "tls-version-min, tls-version-max",
    "handshake-failure": "tls-cipher, tls-groups, cert",
    "insufficient-security": "tls-cipher, tls-cert-profile",
}

_ALERT: Final = re.compile(r"alert (.+)")


def verify_error(number: int, depth: int) -> SessionError:
    """Return the error of an X509_V_ERR number."""
    default = "verify-failed", f"certificate error {number} of OpenSSL"
    reason, detail = _VERIFY.get(number, default)
    return SessionError(reason, f"{detail} (depth {depth})")


def tls_error(error: SSL.Error) -> SessionError:
    """Return the error of an exception of pyOpenSSL."""
    if isinstance(error, (SSL.ZeroReturnError, SSL.SysCallError)):
        return SessionError("tls-closed", "the peer closed TLS")
    texts = [entry[-1] for entry in error.args[0]] if error.args else []
    for text in texts:
        found = _ALERT.search(text)
        if found:
            name = found[1].strip().replace(" ", "-")
            return SessionError(f"tls-alert:{name}", _ALERTS.get(name, text))
        for part, slug, directive in _REASONS:
            if part in text:
                return SessionError(slug, f"{directive}: {text}")
    return SessionError("tls-error", "; ".join(texts))
