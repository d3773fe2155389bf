"""Is a peer's certificate the right one? Pure functions on certificates.

Each check raises SessionError whose reason is a slug and whose detail
begins with the directive concerned.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509


@dataclass(frozen=True, slots=True)
class PeerCheck:
    """What makes a peer the right one; all that is set must hold.

    fingerprints: SHA-256 of the leaf, 32 bytes each (peer-fingerprint).
    verify_hash: digest name and value of the level 1 certificate's hash.
    name, name_type: of verify-x509-name: subject, name or name-prefix.
    eku: name or dotted OID of remote-cert-eku. ku: accepted key usage masks
    of remote-cert-ku; 0 = the extension must be there; None = no check.
    """

    fingerprints: tuple[bytes, ...] = ()
    verify_hash: tuple[str, bytes] | None = None
    name: str = ""
    name_type: str = ""
    eku: str = ""
    ku: tuple[int, ...] | None = None
    ns_cert_type: str = ""
    username_field: str = "CN"


def check_leaf(leaf: x509.Certificate, check: PeerCheck) -> None:
    """Check the peer's own certificate (all but verify-hash)."""
    raise NotImplementedError


def check_chain(chain: Sequence[x509.Certificate], check: PeerCheck) -> None:
    """Check verify-hash; chain: the verified one, leaf first."""
    raise NotImplementedError


def common_name(certificate: x509.Certificate, field: str = "CN") -> str:
    """Return the last value of a subject field (CN unless said otherwise).

    Raises SessionError "bad-name" when it is missing or holds a NUL.
    """
    raise NotImplementedError


def subject_text(certificate: x509.Certificate) -> str:
    """Return the subject as OpenVPN prints it: "C=KG, O=Test, CN=server"."""
    raise NotImplementedError
