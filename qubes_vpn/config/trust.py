"""Who the server is and who we are: certificates, keys, the control wrap."""

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from qubes_vpn.config.document import INLINE, Document, Material
from qubes_vpn.config.material import read_key
from qubes_vpn.config.model import (
    ControlWrapKey,
    Identity,
    ServerCheck,
    TlsOptions,
)
from qubes_vpn.config.values import hex_pairs
from qubes_vpn.wire.keyfile import (
    ClientKeyV2,
    parse_client_key_v2,
    parse_static_key,
)

SHA256_SIZE: Final = 32
HASH_SIZES: Final = {"SHA1": 20, "SHA256": SHA256_SIZE}
TLS_VERSIONS: Final = ("1.0", "1.1", "1.2", "1.3")
DEFAULT_TLS: Final = "1.2"
CERT_PROFILES: Final = ("legacy", "preferred", "insecure", "suiteb")
NAME_TYPES: Final = ("subject", "name", "name-prefix")
ANY_USAGE: Final = 0
EKU_OF: Final = {
    "server": "TLS Web Server Authentication",
    "client": "TLS Web Client Authentication",
}
WRAPS: Final = ("tls-auth", "tls-crypt", "tls-crypt-v2")

_SERIAL: Final = re.compile(rb"-?[0-9]{1,64}")
_PEM_BEGIN: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,64})-----")


def one_of(doc: Document, name: str, names: Iterable[str], default: str) -> Any:  # noqa: ANN401
    """Give the first argument of `name`, which must be one of `names`."""
    item = doc.last(name)
    if item is None:
        return default
    word = item.values[0]
    if word not in names:
        listed = ", ".join(names)
        doc.report(item.statement, f"{name} needs one of: {listed}", 1)
        return default
    return word


def pem(doc: Document, name: str) -> tuple[bytes, ...]:
    """Read the PEM blocks of a directive, without the text around them."""
    found = doc.material(name)
    if found is None:
        return ()
    blocks = tuple(_pem_blocks(found.content.replace(b"\r", b"")))
    if not blocks:
        empty = not found.content.strip()
        what = "is empty" if empty else "holds nothing whole in PEM form"
        doc.problems.append(found.problem(what))
    return blocks


def _pem_blocks(content: bytes) -> Iterator[bytes]:
    at = 0
    while (begin := _PEM_BEGIN.search(content, at)) is not None:
        end_line = b"-----END %s-----" % begin[1]
        end = content.find(end_line, begin.end())
        if end < 0:
            return
        at = end + len(end_line)
        yield content[begin.start() : at] + b"\n"


def _certificates(doc: Document, name: str) -> tuple[bytes, ...]:
    blocks = pem(doc, name)
    found = tuple(b for b in blocks if b"CERTIFICATE-----" in b[:40])
    if blocks and not found:
        doc.complain(f"{name}: holds no certificate", "QV-107")
    return found


# -- the server ---------------------------------------------------------------


def server_check(doc: Document, *, with_crl: bool = True) -> ServerCheck:
    """Read everything that makes the other side the right one.

    with_crl: also read the file or folder that crl-verify names.
    """
    doc.conflict(
        ("peer-fingerprint", "verify-hash"),
        "peer-fingerprint and verify-hash exclude another",
    )
    eku, ku = _usages(doc)
    name = doc.last("verify-x509-name")
    name_type = name.value(1, "subject") if name else ""
    if name and name_type not in NAME_TYPES:
        message = "verify-x509-name needs subject, name or name-prefix"
        doc.report(name.statement, message, 2)
    ns_cert_type = one_of(doc, "ns-cert-type", ("server", "client"), "")
    return ServerCheck(
        ca=b"".join(_certificates(doc, "ca")),
        fingerprints=_fingerprints(doc),
        verify_hash=_verify_hash(doc),
        name=name.values[0] if name else "",
        name_type=name_type,
        eku=eku,
        ku=ku,
        username_field=doc.value("x509-username-field", "CN"),
        ns_cert_type=ns_cert_type,
        **_revocation(doc, read=with_crl),
    )


def _revocation(doc: Document, *, read: bool) -> dict[str, Any]:
    """Read crl-verify: PEM lists, or a folder of revoked serial numbers.

    In a folder each file's name is a serial number in decimal, as OpenVPN
    has it; a block of such numbers, a line each, is the same. read: a file
    or folder too, and not only where it is.
    """
    item = doc.last("crl-verify")
    if item is None:
        return {}
    if item.value(1, "dir") != "dir":
        message = 'crl-verify takes a file, or a folder and "dir"'
        doc.report(item.statement, message, 2)
        return {}
    if item.statement.block is not None or item.values[0] == INLINE:
        found = doc.material("crl-verify")
        lines = found.content.split() if found else []
        if lines and all(map(_SERIAL.fullmatch, lines)):
            return {"revoked": serials(lines)}
        return {"crl": b"".join(pem(doc, "crl-verify"))}
    path = item.values[0]
    if item.value(1):
        path = f"{path.rstrip('/')}/"
    where = {"crl_path": doc.resolve(path)}
    if not read:
        return where
    if not item.value(1):
        return where | {"crl": b"".join(pem(doc, "crl-verify"))}
    names = doc.read(item.statement, path)
    lines = names.content.split(b"\n") if names else []
    return where | {"revoked": serials(lines)}


def serials(names: Iterable[bytes]) -> frozenset[str]:
    """Give those names that are serial numbers in decimal."""
    return frozenset(n.decode() for n in names if _SERIAL.fullmatch(n))


def _usages(doc: Document) -> tuple[str, tuple[int, ...] | None]:
    """Read the required extended key usage and key usages.

    Each is set by remote-cert-tls too: as in OpenVPN, the last one holds.
    """
    role = EKU_OF[one_of(doc, "remote-cert-tls", EKU_OF, "server")]
    eku = doc.last("remote-cert-tls", "remote-cert-eku")
    ku = doc.last("remote-cert-tls", "remote-cert-ku")
    named = eku is not None and eku.row.name == "remote-cert-eku"
    masks = ku is not None and ku.row.name == "remote-cert-ku" and ku.values
    return (
        doc.value("remote-cert-eku") if named else role if eku else "",
        masks or ((ANY_USAGE,) if ku else None),
    )


def _fingerprints(doc: Document) -> tuple[bytes, ...]:
    found: list[bytes] = []
    for item in doc.all("peer-fingerprint"):
        block = item.statement.block
        if block is None:
            if isinstance(item.values[0], bytes):
                found += _sized(doc, [(item.values[0], item.statement.line)])
            continue
        found += _sized(doc, _hash_lines(doc, block, item.statement.line))
    return tuple(dict.fromkeys(found))


def _hash_lines(
    doc: Document, block: str, line: int
) -> list[tuple[bytes, int]]:
    found = []
    for number, text in enumerate(block.split("\n"), line + 1):
        word = text.strip()
        if not word or word[0] in "#;":
            continue
        try:
            found.append((hex_pairs(word), number))
        except ValueError as error:
            doc.complain(f"line {number}: {error}")
    return found


def _sized(doc: Document, hashes: list[tuple[bytes, int]]) -> list[bytes]:
    for value, line in hashes:
        if len(value) != SHA256_SIZE:
            message = f"line {line}: a fingerprint has {SHA256_SIZE} bytes"
            doc.complain(f"{message} (SHA-256), this one {len(value)}")
    return [value for value, _ in hashes if len(value) == SHA256_SIZE]


def _verify_hash(doc: Document) -> tuple[str, bytes] | None:
    items = doc.all("verify-hash")
    if not items:
        return None
    item = items[-1]
    block = item.statement.block
    if block is None:
        algorithm = item.value(1, "SHA1")
        hashes = [item.values[0]]
    else:
        algorithm = "SHA256"
        lines = _hash_lines(doc, block, item.statement.line)
        hashes = [value for value, _ in lines]
    if len(hashes) != 1 or len(items) != 1:
        doc.report(item.statement, "verify-hash: one hash is supported")
        return None
    if algorithm not in HASH_SIZES or len(hashes[0]) != HASH_SIZES[algorithm]:
        message = "verify-hash needs a SHA1 hash, or a hash and SHA256"
        doc.report(item.statement, message, 1)
        return None
    return algorithm, hashes[0]


# -- ourselves ---------------------------------------------------------------


def identity(doc: Document) -> Identity:
    """Read our certificate and key; a problem when one lacks the other."""
    passphrase = _passphrase(doc)
    if (item := doc.last("pkcs12")) is not None:
        for name in ("cert", "key"):
            if doc.has(name):
                message = f"pkcs12 and {name} exclude another"
                doc.report(item.statement, message, code="QV-108")
        found = doc.material("pkcs12")
        return Identity(
            chain=b"".join(_certificates(doc, "extra-certs")),
            passphrase=passphrase,
            pkcs12=_pkcs12(doc, found) if found else b"",
        )
    for name, other in (("cert", "key"), ("key", "cert")):
        if doc.has(name) and not doc.has(other):
            at = doc.last(name)
            assert at is not None
            message = f"{name} needs {other} beside it"
            doc.report(at.statement, message, code="QV-109")
    certificates = _certificates(doc, "cert")
    extra = _certificates(doc, "extra-certs")
    return Identity(
        certificate=b"".join(certificates[:1]),
        chain=b"".join(certificates[1:] + extra),
        key=b"".join(pem(doc, "key")),
        passphrase=passphrase,
    )


def _passphrase(doc: Document) -> bytes | None:
    """Read askpass; None when there is none, or somebody is to be asked."""
    item = doc.last("askpass")
    if item is None or (not item.values and item.statement.block is None):
        return None
    found = doc.material("askpass")
    return found.content.split(b"\n")[0].rstrip(b"\r") if found else None


def _pkcs12(doc: Document, found: Material) -> bytes:
    if found.path:
        return found.content
    try:
        return base64.b64decode(b"".join(found.content.split()), validate=True)
    except binascii.Error:
        doc.problems.append(found.problem("is not base64"))
        return b""


# -- the control channel -----------------------------------------------------


def control_wrap(doc: Document, names: Iterable[str] = WRAPS) -> ControlWrapKey:
    """Read the control wrap of a profile or of a connection block."""
    given = [name for name in names if doc.all(name)]
    doc.conflict(given, " and ".join(given) + " exclude another")
    for name in given:
        found = doc.material(name)
        if found is None:
            continue
        if name == "tls-crypt-v2":
            empty = ClientKeyV2(b"", b"")
            pair = read_key(doc, found, parse_client_key_v2, empty)
            return ControlWrapKey(name, pair.key, wkc=pair.wkc)
        key = read_key(doc, found, parse_static_key, b"")
        if name == "tls-crypt":
            return ControlWrapKey(name, key)
        return ControlWrapKey(
            name, key, key_direction(doc, "tls-auth"), digest_of_tls_auth(doc)
        )
    return ControlWrapKey()


def key_direction(doc: Document, name: str) -> int | None:
    """Give the direction: the argument of `name`, or key-direction."""
    written = [
        (item.order, item.values[1])
        for item in doc.all(name)
        if len(item.values) > 1
    ]
    written += [(i.order, i.values[0]) for i in doc.all("key-direction")]
    if not written and doc.outer:
        return key_direction(doc.outer, name)
    return max(written)[1] if written else None


def digest_of_tls_auth(doc: Document) -> str:
    """Give the digest that tls-auth uses: that of `auth`."""
    item = (doc.outer or doc).last("auth")
    digest = "SHA1" if item is None else item.values[0].upper()
    if digest == "NONE" and item:
        doc.report(item.statement, "tls-auth needs a digest, not auth none", 1)
    return str(digest)


def tls_options(doc: Document) -> TlsOptions:
    """Read how TLS is spoken."""
    version_max = one_of(doc, "tls-version-max", TLS_VERSIONS, "")
    lowest = min(DEFAULT_TLS, version_max or DEFAULT_TLS)
    version_min = one_of(doc, "tls-version-min", TLS_VERSIONS, lowest)
    if version_max and version_max < version_min:
        item = doc.last("tls-version-max")
        assert item is not None
        message = "tls-version-max is below tls-version-min"
        doc.report(item.statement, message, 1)
    return TlsOptions(
        version_min=version_min,
        version_max=version_max,
        cipher=doc.value("tls-cipher", ""),
        ciphersuites=doc.value("tls-ciphersuites", ""),
        groups=doc.value("tls-groups", ""),
        cert_profile=one_of(doc, "tls-cert-profile", CERT_PROFILES, "legacy"),
    )
