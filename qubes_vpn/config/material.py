"""What files and blocks hold: keys of OpenVPN's own, names and passwords."""

from collections.abc import Callable
from typing import Final, TypeVar

from qubes_vpn.config.document import Document, Material

CREDENTIAL_MAX: Final = 4096

T = TypeVar("T")


def read_key(
    doc: Document, found: Material, parse: Callable[[str], T], default: T
) -> T:
    """Read a key by one of wire.keyfile's functions.

    A problem, and the default, when it is no such key.
    """
    try:
        return parse(found.content.decode("latin-1"))
    except ValueError as error:
        doc.problems.append(found.problem(str(error)))
        return default


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
