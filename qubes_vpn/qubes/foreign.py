"""What other VPN programs left in a qube: their profiles, and their hooks."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# folders in which they keep profiles, by the name that users know them by
_FOLDERS: Final = (
    ("Qubes-vpn-support", "rw/config/vpn"),
    ("qubes-tunnel", "rw/config/qtunnel"),
    ("qubes-vpn of Rudd-O", "rw/config/openvpn"),
    ("3isec sys-vpn", "rw/config/vpn"),
    ("openvpn", "rw/config/openvpn/client"),
)
_PROFILES: Final = ("*.ovpn", "*.conf")
_HOOKS: Final = (
    "rw/config/rc.local",
    "rw/config/rc.local.d/*",
    "rw/config/qubes-firewall-user-script",
    "rw/config/qubes-firewall.d/*",
    "rw/config/qubes-ip-change-hook",
    "rw/config/network-hooks.d/*",
    "rw/config/NM-system-connections/*",
)
_TRACES: Final = re.compile(
    r"openvpn|qubes-vpn-|qtunnel|qubes-tunnel|/vpn/|wg-quick|wireguard|mullvad"
    r"|PR-QBS|custom-forward.*oifgroup|vpn-handler",
    re.IGNORECASE,
)
_READ_MAX: Final = 256 * 1024
_DISABLED: Final = ".qubes-vpn-disabled"
_OURS: Final = "qubes-vpn lockdown"


@dataclass(frozen=True, slots=True)
class Found:
    """A file of another program. kind: profile or hook."""

    kind: str
    program: str
    path: Path


def find(root: Path = Path("/")) -> Iterator[Found]:
    """Give all that is found, profiles first, each file once."""
    seen: set[Path] = set()
    for program, folder in _FOLDERS:
        for pattern in _PROFILES:
            for path in sorted((root / folder).glob(pattern)):
                if path.is_file() and path not in seen and _is_openvpn(path):
                    seen.add(path)
                    yield Found("profile", program, path)
    for pattern in _HOOKS:
        for path in sorted(root.glob(pattern)):
            if (
                path.is_file()
                and not path.name.endswith(_DISABLED)
                and _speaks_of_vpn(path)
            ):
                yield Found("hook", _program_of(path), path)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(_READ_MAX).decode("utf-8", "replace")
    except OSError:
        return ""


def _is_openvpn(path: Path) -> bool:
    words = {
        line.split()[0] for line in _text(path).splitlines() if line.split()
    }
    return "remote" in words or "<connection>" in words


def _speaks_of_vpn(path: Path) -> bool:
    lines = (
        line
        for line in _text(path).splitlines()
        if not line.lstrip().startswith("#")
    )
    text = "\n".join(lines)
    if path.parent.name == "NM-system-connections":
        return bool(re.search(r"^type=(vpn|wireguard)$", text, re.MULTILINE))
    return bool(_TRACES.search(text)) and _OURS not in text


def _program_of(path: Path) -> str:
    if path.parent.name == "NM-system-connections":
        return "NetworkManager"
    return "a script"


def disable(found: Found) -> Path:
    """Rename a hook so that nothing starts it; give its new name.

    Raises OSError. Nothing is removed: the user can take it back.
    """
    # NetworkManager reads every file of its folder but hidden ones
    dot = "." if found.program == "NetworkManager" else ""
    path = found.path.with_name(f"{dot}{found.path.name}{_DISABLED}")
    mode = found.path.stat().st_mode
    found.path.rename(path)
    # hooks in a folder are started by being executable, not by their name
    path.chmod(mode & ~0o111)
    return path
