"""The child that parses a profile from another qube: no privileges, no files.

Started by `qubes-vpn rpc Import` with the profile on standard input; answers
with one JSON object on standard output. What it imports is loaded before it
gives everything up.
"""

import contextlib
import json
import resource
import sys
from typing import Any, Final, NoReturn

from qubes_vpn.config.explain import carries_everything, not_applied
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.config.write import write_profile
from qubes_vpn.errors import ConfigError
from qubes_vpn.system.privileges import drop_privileges

NOBODY: Final = 65534
MEMORY_MAX: Final = 512 * 1024 * 1024
CPU_MAX_S: Final = 10
NOT_ALL: Final = (
    "the profile does not send everything through the tunnel: what the server"
    " does not carry is blocked"
)


def confine() -> None:
    """Give up what a parser does not need. Raises OsRefusedError."""
    for kind, most in (
        (resource.RLIMIT_AS, MEMORY_MAX),
        (resource.RLIMIT_CPU, CPU_MAX_S),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        # what is open stays open; nothing else can be opened
        (resource.RLIMIT_NOFILE, 3),
    ):
        with contextlib.suppress(ValueError):
            resource.setrlimit(kind, (most, most))
    drop_privileges(NOBODY, NOBODY)


def no_file(path: str) -> NoReturn:
    """Refuse every file that the profile names."""
    raise OSError(
        f"{path} stays where it is: put its content between tags, or send what"
        " `qubes-vpn check --print` writes"
    )


def verdict(text: str) -> dict[str, Any]:
    """Parse, and say everything that the parent needs."""
    try:
        profile = parse_client_profile(text, "profile", no_file)
    except ConfigError as error:
        return {"ok": False, "problems": list(map(str, error.problems))}
    notes = list(not_applied(profile.notes))
    if carries_everything(profile) is False:
        notes.append(NOT_ALL)
    return {
        "ok": True,
        "text": write_profile(profile),
        "login": "",
        "notes": notes,
    }


def main() -> int:
    """Read, confine, parse, answer."""
    data = sys.stdin.buffer.read()
    confine()
    json.dump(verdict(data.decode("utf-8")), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
