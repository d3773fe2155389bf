"""Is a peer's certificate the right one? Pure functions on certificates.

Each check raises SessionError whose reason is a slug and whose detail
begins with the directive concerned.
Source: OpenVPN 2 ssl_verify.c, ssl_verify_openssl.c.
"""

import hmac
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier

from qubes_vpn.errors import SessionError

# OpenSSL's short names, which OpenVPN prints and x509-username-field takes.
_SHORT_NAMES: Final = {
    "2.5.4.3": "CN",
    "2.5.4.4": "SN",
    "2.5.4.5": "serialNumber",
    "2.5.4.6": "C",
    "2.5.4.7": "L",
    "2.5.4.8": "ST",
    "2.5.4.9": "street",
    "2.5.4.10": "O",
    "2.5.4.11": "OU",
    "2.5.4.12": "title",
    "2.5.4.13": "description",
    "2.5.4.17": "postalCode",
    "2.5.4.41": "name",
    "2.5.4.42": "GN",
    "2.5.4.43": "initials",
    "2.5.4.44": "generationQualifier",
    "2.5.4.45": "x500UniqueIdentifier",
    "2.5.4.46": "dnQualifier",
    "2.5.4.65": "pseudonym",
    "0.9.2342.19200300.100.1.1": "UID",
    "0.9.2342.19200300.100.1.25": "DC",
    "1.2.840.113549.1.9.1": "emailAddress",
    "1.2.840.113549.1.9.2": "unstructuredName",
    "1.2.840.113549.1.9.8": "unstructuredAddress",
}

# OpenSSL's long names of extended key usages, as remote-cert-eku takes them.
_EKU_NAMES: Final = {
    "TLS Web Server Authentication": ExtendedKeyUsageOID.SERVER_AUTH,
    "TLS Web Client Authentication": ExtendedKeyUsageOID.CLIENT_AUTH,
    "Code Signing": ExtendedKeyUsageOID.CODE_SIGNING,
    "E-mail Protection": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "Time Stamping": ExtendedKeyUsageOID.TIME_STAMPING,
    "OCSP Signing": ExtendedKeyUsageOID.OCSP_SIGNING,
    "Any Extended Key Usage": ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,
}

_NS_CERT_TYPE: Final = ObjectIdentifier("2.16.840.1.113730.1.1")
# The first byte of the bit string, and the purpose that replaced the type.
_NS_TYPES: Final = {
    "client": (0x80, ExtendedKeyUsageOID.CLIENT_AUTH),
    "server": (0x40, ExtendedKeyUsageOID.SERVER_AUTH),
}
_BIT_STRING_TAG: Final = 3

# The bits of key usage as remote-cert-ku counts them.
_KU_BITS: Final = (
    ("digital_signature", 0x80),
    ("content_commitment", 0x40),
    ("key_encipherment", 0x20),
    ("data_encipherment", 0x10),
    ("key_agreement", 0x08),
    ("key_cert_sign", 0x04),
    ("crl_sign", 0x02),
)


@dataclass(frozen=True, slots=True)
class PeerCheck:
    """What makes a peer the right one; all that is set must hold.

    fingerprints: SHA-256 of the leaf, 32 bytes each (peer-fingerprint).
    verify_hash: name and value of a digest of the leaf's issuer, the level
    1 certificate (verify-hash). name, name_type: of verify-x509-name:
    subject, name or name-prefix. eku: name or dotted OID (remote-cert-eku).
    ku: accepted key usage masks (remote-cert-ku); 0 = the extension must be
    there; None = no check. username_field: x509-username-field. revoked:
    serial numbers in decimal (crl-verify of a folder), of any certificate
    of the chain.
    """

    fingerprints: tuple[bytes, ...] = ()
    verify_hash: tuple[str, bytes] | None = None
    name: str = ""
    name_type: str = ""
    eku: str = ""
    ku: tuple[int, ...] | None = None
    ns_cert_type: str = ""
    username_field: str = "CN"
    revoked: frozenset[str] = frozenset()


def check_leaf(leaf: x509.Certificate, check: PeerCheck) -> None:
    """Check the peer's own certificate: everything but verify-hash."""
    if check.fingerprints:
        _check_fingerprint(leaf, check.fingerprints)
    subject = subject_text(leaf)  # which can be read, whoever asks for it
    if check.name_type:
        _check_name(leaf, subject, check)
    if check.eku:
        _check_eku(leaf, check.eku)
    if check.ku is not None:
        _check_ku(leaf, check.ku)
    if check.ns_cert_type:
        _check_ns_cert_type(leaf, check.ns_cert_type)


def check_issuer(issuer: x509.Certificate, check: PeerCheck) -> None:
    """Check verify-hash against the leaf's issuer."""
    assert check.verify_hash is not None
    name, expected = check.verify_hash
    algorithm: hashes.HashAlgorithm = (
        hashes.SHA1() if name.upper() == "SHA1" else hashes.SHA256()  # noqa: S303
    )
    if not hmac.compare_digest(issuer.fingerprint(algorithm), expected):
        raise SessionError(
            "wrong-fingerprint", "verify-hash: the issuer is another one"
        )


def common_name(certificate: x509.Certificate, field: str = "CN") -> str:
    """Return the last value of a subject field, which names the peer.

    field: OpenSSL's short name (any case), or "ext:subjectAltName" for the
    first e-mail address. Raises SessionError "bad-name" when it is missing
    or holds a NUL.
    """
    if field.startswith("ext:"):
        values = _alternative_names(certificate)
    else:
        values = [
            str(attribute.value)
            for attribute in certificate.subject
            if _short_name(attribute.oid).upper() == field.upper()
        ]
    if not values:
        raise SessionError("bad-name", f"the certificate has no {field}")
    if "\0" in values[-1]:
        raise SessionError("bad-name", f"{field} has a NUL character in it")
    return values[-1]


def subject_text(certificate: x509.Certificate) -> str:
    """Return the subject as OpenVPN prints it: "C=KG, O=Test, CN=server".

    Control characters are escaped as OpenSSL does it (\\\\0A). Raises
    SessionError "bad-name" for a NUL.
    """
    return ", ".join(
        " + ".join(
            f"{_short_name(attribute.oid)}={_printable(str(attribute.value))}"
            for attribute in rdn
        )
        for rdn in certificate.subject.rdns
    )


def _short_name(oid: ObjectIdentifier) -> str:
    return _SHORT_NAMES.get(oid.dotted_string, oid.dotted_string)


def _printable(value: str) -> str:
    if "\0" in value:
        raise SessionError("bad-name", "the subject has a NUL character in it")
    return "".join(
        f"\\{ord(letter):02X}"
        if ord(letter) < 32 or letter == "\x7f"
        else letter
        for letter in value
    )


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        ).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.RFC822Name)[:1]


def _check_fingerprint(
    leaf: x509.Certificate, fingerprints: tuple[bytes, ...]
) -> None:
    actual = leaf.fingerprint(hashes.SHA256())
    # Not any(): every comparison takes its time.
    if not sum(hmac.compare_digest(actual, known) for known in fingerprints):
        raise SessionError(
            "wrong-fingerprint",
            f"peer-fingerprint: the peer has {actual.hex(':').upper()}",
        )


def _check_name(leaf: x509.Certificate, subject: str, check: PeerCheck) -> None:
    match check.name_type:
        case "subject":
            actual, right = subject, subject == check.name
        case "name":
            actual = common_name(leaf, check.username_field)
            right = actual == check.name
        case _:
            actual = common_name(leaf, check.username_field)
            right = actual.startswith(check.name)
    if not right:
        raise SessionError(
            "wrong-name",
            f"verify-x509-name: the peer is {actual!r}, not {check.name!r}",
        )


def _purposes(leaf: x509.Certificate) -> list[ObjectIdentifier]:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except x509.ExtensionNotFound:
        return []
    return list(usage.value)


def _check_eku(leaf: x509.Certificate, eku: str) -> None:
    known = _EKU_NAMES.get(eku)
    dotted = known.dotted_string if known else eku
    if dotted not in [oid.dotted_string for oid in _purposes(leaf)]:
        raise SessionError(
            "wrong-usage", f"remote-cert-eku: the peer is not for {eku}"
        )


def _check_ku(leaf: x509.Certificate, accepted: tuple[int, ...]) -> None:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        raise SessionError(
            "wrong-usage", "remote-cert-ku: the peer has no key usage"
        ) from None
    actual = sum(bit for name, bit in _KU_BITS if getattr(usage, name))
    if not any(actual & mask == mask for mask in accepted):
        raise SessionError(
            "wrong-usage", f"remote-cert-ku: the peer has {actual:02x}"
        )


def _check_ns_cert_type(leaf: x509.Certificate, wanted: str) -> None:
    """Accept the Netscape type, or the extended key usage after it."""
    bit, purpose = _NS_TYPES[wanted]
    if purpose in _purposes(leaf):
        return
    for extension in leaf.extensions:
        value = extension.value
        if extension.oid == _NS_CERT_TYPE and isinstance(
            value, x509.UnrecognizedExtension
        ):
            # DER: tag, length 2, unused bits, bits
            content = value.value
            if content[:2] == bytes((_BIT_STRING_TAG, 2)) and (
                content[3:4] and content[3] & bit
            ):
                return
    raise SessionError("wrong-usage", f"ns-cert-type: the peer is no {wanted}")
