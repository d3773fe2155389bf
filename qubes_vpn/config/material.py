"""Static keys, tls-crypt-v2 keys, PEM blocks and name-and-password files."""

import base64
import binascii
import re
from typing import Final

from qubes_vpn.config.document import Document, Material

STATIC_KEY_SIZE: Final = 256
STATIC_BEGIN: Final = "-----BEGIN OpenVPN Static key V1-----"
STATIC_END: Final = "-----END OpenVPN Static key V1-----"
V2_CLIENT: Final = "OpenVPN tls-crypt-v2 client key"
V2_SERVER: Final = "OpenVPN tls-crypt-v2 server key"
AUTH_TOKEN: Final = "OpenVPN auth-token server key"  # noqa: S105  (a label)
WKC_MIN: Final = 32 + 256 + 2  # tag, wrapped key, length
WKC_MAX: Final = 1024
CREDENTIAL_MAX: Final = 4096

_HEX: Final = re.compile(r"[0-9A-Fa-f]*", re.ASCII)


def static_key(doc: Document, found: Material) -> bytes:
    """Read a static key: 256 bytes as hexadecimal, between two markers.

    A problem, and b"" then, when it is anything else.
    """
    digits: list[str] = []
    inside = False
    for number, raw in enumerate(found.content.splitlines(), 1):
        line = raw.decode("latin-1").strip()
        if not inside:
            inside = line == STATIC_BEGIN
        elif line == STATIC_END:
            return _static_bytes(doc, found, "".join(digits), number)
        elif not _HEX.fullmatch(line):
            message = "not hexadecimal: this static key is damaged"
            doc.problems.append(found.problem(message, number))
            return b""
        else:
            digits.append(line)
    what = f'"{STATIC_END}"' if inside else f'"{STATIC_BEGIN}"'
    doc.problems.append(found.problem(f"not a static key: no line {what}"))
    return b""


def _static_bytes(
    doc: Document, found: Material, digits: str, line: int
) -> bytes:
    if len(digits) == 2 * STATIC_KEY_SIZE:
        return bytes.fromhex(digits)
    message = (
        f"a static key has {STATIC_KEY_SIZE} bytes, this one"
        f" {len(digits) / 2:g}"
    )
    doc.problems.append(found.problem(message, line))
    return b""


def pem_blocks(text: bytes, label: str) -> list[bytes]:
    """Find every PEM block of that label, decoded.

    Raises ValueError for one that is not base64.
    """
    pattern = re.compile(
        rb"-----BEGIN %s-----(.*?)-----END %s-----"
        % (label.encode(), label.encode()),
        re.DOTALL,
    )
    blocks = []
    for body in pattern.findall(text):
        try:
            blocks.append(
                base64.b64decode(b"".join(body.split()), validate=True)
            )
        except binascii.Error:
            message = f"{label} is not base64"
            raise ValueError(message) from None
    return blocks


def one_block(doc: Document, found: Material, label: str) -> bytes:
    """Read the one PEM block of that label; a problem, and b"", if not."""
    try:
        blocks = pem_blocks(found.content, label)
    except ValueError as error:
        doc.problems.append(found.problem(str(error)))
        return b""
    if len(blocks) != 1:
        doc.problems.append(found.problem(f"needs one {label}"))
        return b""
    return blocks[0]


def tls_crypt_v2_client(doc: Document, found: Material) -> tuple[bytes, bytes]:
    """Read a tls-crypt-v2 client key: 256 bytes of key, then the WKc."""
    block = one_block(doc, found, V2_CLIENT)
    key, wkc = block[:STATIC_KEY_SIZE], block[STATIC_KEY_SIZE:]
    if block and not WKC_MIN <= len(wkc) <= WKC_MAX:
        doc.problems.append(found.problem(f"the {V2_CLIENT} is damaged"))
    return key, wkc


def name_and_password(
    doc: Document, found: Material
) -> tuple[str | None, str | None]:
    """Read a user's name and password, a line each; the second may miss."""
    try:
        text = found.content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError:
        doc.problems.append(found.problem("is not UTF-8 text"))
        return None, None
    lines = [line.rstrip("\r") for line in text.split("\n")][:2]
    for number, line in enumerate(lines, 1):
        if len(line) > CREDENTIAL_MAX or "\0" in line:
            doc.problems.append(found.problem("is too long", number))
            return None, None
    name, password = [*lines, ""][:2]
    return name or None, password or None
