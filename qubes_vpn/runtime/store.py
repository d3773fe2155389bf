"""What a kept profile says: between its files (qubes.profiles) and values."""

import re
from dataclasses import replace
from typing import Final

from qubes_vpn.config.document import no_files
from qubes_vpn.config.profile import (
    ClientProfile,
    Credentials,
    parse_client_profile,
)
from qubes_vpn.config.write import write_profile
from qubes_vpn.errors import printable
from qubes_vpn.qubes.profiles import Kept, Profiles
from qubes_vpn.runtime.files import read_bounded, read_profile

NAME_MAX: Final = 48
NOTE: Final = "# not applied: "


def kept(name: str, profile: ClientProfile) -> Kept:
    """Give what is written of a profile: its login has a file of its own."""
    login, lines = profile.auth_user_pass, b""
    if login and login.username is not None and login.password is not None:
        profile = replace(profile, auth_user_pass=Credentials())
        lines = login_lines(login)
    said = "".join(
        f"{NOTE}{printable(f'{directive}: {reason}')}\n"
        for _, directive, reason in profile.notes
    )
    text = said + write_profile(profile)
    return Kept(name, text.encode("utf-8", "surrogateescape"), lines)


def login_lines(login: Credentials) -> bytes:
    """Give the file of a user name and a password."""
    text = f"{login.username or ''}\n{login.password or ''}\n"
    return text.encode("utf-8", "surrogateescape")


def load(profiles: Profiles, name: str) -> ClientProfile:
    """Parse a profile; what its credentials file has is in it.

    Raises ConfigError when somebody changed it for the worse.
    """
    path = str(profiles.path(name))
    profile = parse_client_profile(read_profile(path), path, no_files)
    login = credentials(profiles, name)
    if login is None or profile.auth_user_pass is None:
        return profile
    return replace(profile, auth_user_pass=login)


def credentials(profiles: Profiles, name: str) -> Credentials | None:
    """Give the kept user name and password, if they are."""
    path = profiles.credentials(name)
    if path is None:
        return None
    text = read_bounded(path).decode("utf-8", "surrogateescape")
    username, password = [*text.split("\n"), "", ""][:2]
    return Credentials(username, password)


def notes(profiles: Profiles, name: str) -> tuple[str, ...]:
    """Say what was not applied when the profile was imported."""
    return tuple(
        line.removeprefix(NOTE)
        for line in read_profile(str(profiles.path(name))).split("\n")
        if line.startswith(NOTE)
    )


def name_for(title: str, taken: set[str]) -> str:
    """Make a name that fits from a file's, and that is not taken."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", title).lstrip(".")[:NAME_MAX]
    base = plain or "profile"
    name, number = base, 1
    while name in taken:
        number += 1
        tail = f"-{number}"
        name = base[: NAME_MAX - len(tail)] + tail
    return name
