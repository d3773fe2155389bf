"""A client profile as a value: parsed once, checked, immutable."""

from typing import TypeAlias

from qubes_vpn.config import client
from qubes_vpn.config.document import Document, ReadFile
from qubes_vpn.config.foreign import recognise
from qubes_vpn.config.model import (
    ClientProfile,
    ControlWrapKey,
    Credentials,
    Identity,
    Proxy,
    Remote,
    ServerCheck,
    TlsOptions,
)
from qubes_vpn.errors import ConfigError, Problem

__all__ = [
    "ClientProfile",
    "ControlWrapKey",
    "Credentials",
    "Identity",
    "Profile",
    "Proxy",
    "ReadFile",
    "Remote",
    "ServerCheck",
    "TlsOptions",
    "parse_client_profile",
]

Profile: TypeAlias = ClientProfile


def parse_client_profile(
    text: str, name: str, read_file: ReadFile
) -> ClientProfile:
    """Parse a client's profile and check it.

    name: of the file, for messages. read_file: gives the bytes of a file
    that the profile names; it resolves relative names, and raises OSError
    or ValueError.
    Raises ConfigError with every problem found, and nothing else.
    """
    foreign = recognise(text)
    if foreign:
        raise ConfigError([Problem(name, 0, 0, foreign, "QV-111")])
    doc = Document(name, read_file)
    doc.load(text, name)
    doc.finish()
    profile = client.build(doc)
    if doc.problems:
        raise ConfigError(doc.problems)
    return profile
