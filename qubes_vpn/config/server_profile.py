"""A server profile as a value: parsed once, checked, immutable."""

from qubes_vpn.config import server
from qubes_vpn.config.client_config import build_client_config
from qubes_vpn.config.directives import Scope
from qubes_vpn.config.document import Document, ReadFile, no_files
from qubes_vpn.config.foreign import recognise
from qubes_vpn.config.server_model import (
    ClientConfig,
    Listen,
    ServerProfile,
    TokenOptions,
)
from qubes_vpn.errors import ConfigError, Problem

__all__ = [
    "ClientConfig",
    "Listen",
    "ServerProfile",
    "TokenOptions",
    "parse_client_config",
    "parse_server_profile",
]


def parse_server_profile(
    text: str, name: str, read_file: ReadFile
) -> ServerProfile:
    """Parse a server's profile and check it; see parse_client_profile.

    Names of files that may change while it runs (client-config-dir,
    crl-verify, ifconfig-pool-persist, status) are left as names, relative
    to the profile's folder. Raises ConfigError with every problem found.
    """
    foreign = recognise(text)
    if foreign:
        raise ConfigError([Problem(name, 0, 0, foreign, "QV-111")])
    doc = Document(name, read_file, Scope.SERVER)
    doc.load(text, name)
    doc.finish()
    profile = server.build(doc)
    if doc.problems:
        raise ConfigError(doc.problems)
    return profile


def parse_client_config(text: str, name: str) -> ClientConfig:
    """Parse one file of client-config-dir. It can name no other files.

    Raises ConfigError with every problem found.
    """
    doc = Document(name, no_files, Scope.CCD)
    doc.load(text, name)
    doc.finish()
    config = build_client_config(doc)
    if doc.problems:
        raise ConfigError(doc.problems)
    return config
