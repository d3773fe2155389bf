"""Kernel settings, as files below /proc/sys."""

import glob
import os
from typing import Final

from qubes_vpn.errors import OsRefusedError

ROOT: Final = "/proc/sys/"


def read(path: str) -> str | None:
    """Give a setting's value, or None where the kernel has it not."""
    try:
        with open(ROOT + path) as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OsRefusedError(f"{path}: {error.strerror}") from error


def write(path: str, value: int) -> bool:
    """Set a value; False where the kernel has it not. OsRefusedError."""
    try:
        with open(ROOT + path, "w") as stream:
            stream.write(str(value))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OsRefusedError(f"{path}: {error.strerror}") from error
    return True


def wrong(path: str, value: int) -> list[str]:
    """Give the settings that a path with `*` names and that differ."""
    return [
        found for found in expand(path) if read(found) not in (None, str(value))
    ]


def expand(path: str) -> list[str]:
    """Give the paths that one with `*` stands for, at this moment."""
    if "*" not in path:
        return [path]
    found = glob.glob(ROOT + path)
    return sorted(name.removeprefix(ROOT) for name in found)


def has_ipv6() -> bool:
    """Tell whether the kernel has IPv6."""
    return os.path.isdir(ROOT + "net/ipv6")
