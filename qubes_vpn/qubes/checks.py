"""What `qubes-vpn selftest` looks at on a real system, and redaction.

Each check says ok, bad or unknown, and one line. Nothing is changed.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

# command -> (status, output); a program that is missing is status 127
Output: TypeAlias = Callable[[Sequence[str]], tuple[int, str]]

OK: Final = "ok"
BAD: Final = "BAD"
UNKNOWN: Final = "?"
# where the keeper notes that it turned forwarding off
STOPPED: Final = "run/qubes-vpn/forwarding-off"


@dataclass(frozen=True, slots=True)
class Result:
    """What one check found."""

    verdict: str
    name: str
    text: str

    def __str__(self) -> str:
        """Format as one line."""
        return f"{self.verdict:<4} {self.name}: {self.text}"


def run_checks(output: Output, root: Path = Path("/")) -> Iterator[Result]:
    """Look at everything, in the order in which it matters."""
    yield from _system(output, root)
    yield from _lock(output, root)
    yield from _units(output)
    yield from _qubes(root)


def _system(output: Output, root: Path) -> Iterator[Result]:
    for name, command in (
        ("kernel", ("uname", "-r")),
        ("nft", ("nft", "--version")),
        ("python", ("python3", "--version")),
    ):
        status, text = output(command)
        yield Result(UNKNOWN if status else OK, name, _first(text))
    name = "release"
    release = _read(root / "etc/os-release")
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', release, re.MULTILINE)
    yield Result(OK, name, found[1] if found else "unknown")
    status, _ = output(("modinfo", "ovpn"))
    yield Result(
        OK, "ovpn driver", "not there: userspace plane" if status else "there"
    )


def _lock(output: Output, root: Path) -> Iterator[Result]:
    for family in ("inet", "netdev"):
        status, text = output(("nft", "list", "table", family, "qubes_vpn"))
        there = status == 0 and "policy drop" in text
        yield Result(
            OK if there else BAD,
            f"table {family} qubes_vpn",
            "drops by default" if there else "is not in force",
        )
    for version in ("-4", "-6"):
        status, text = output(("ip", version, "rule", "show"))
        there = "lookup 7078" in text and "unreachable" in text
        yield Result(
            OK if there else BAD,
            f"routing rules {version}",
            "in force" if there else "are not in force",
        )
    yield _forwarding(output, root)


def _forwarding(output: Output, root: Path) -> Result:
    """Whether packets of qubes are passed on at all; if not, by whose will."""
    name = "ip_forward"
    value = _read(root / "proc/sys/net/ipv4/ip_forward").strip()
    if value != "0":
        return Result(OK if value == "1" else UNKNOWN, name, value or "unknown")
    _, lock = output(("systemctl", "is-failed", "qubes-vpn-lockdown.service"))
    if (root / STOPPED).exists():
        why = "the keeper stopped it: `qubes-vpn status` says why (QV-405)"
    elif _first(lock) == "failed":
        why = "on purpose, because the lock does not load"
    elif not (root / "run/qubes-service/qubes-network").exists():
        why = "this qube provides no network (provides_network)"
    else:
        why = "qubes-network.service has not turned it on"
    return Result(BAD, name, f"off: {why}")


def _units(output: Output) -> Iterator[Result]:
    services = ("lockdown", "keeper", "engine", "agent")
    ours = [f"qubes-vpn-{name}.service" for name in services]
    for unit in (*ours, "qubes-vpn-reverse.socket"):
        _, text = output(("systemctl", "is-active", unit))
        state = _first(text)
        yield Result(OK if state == "active" else BAD, unit, state or "unknown")
    for unit in ("qubes-network.service", "qubes-network-uplink@eth0.service"):
        _, text = output(
            ("systemctl", "show", "--property=Requires", "--value", unit)
        )
        there = "qubes-vpn-lockdown.service" in text.split()
        yield Result(
            OK if there else BAD,
            unit,
            "requires the lock" if there else "does not require the lock",
        )


def _qubes(root: Path) -> Iterator[Result]:
    for name, path in (
        ("service qubes-vpn", "run/qubes-service/qubes-vpn"),
        ("service qubes-firewall", "run/qubes-service/qubes-firewall"),
        ("DNS script", "usr/lib/qubes/qubes-setup-dnat-to-ns"),
        ("profiles", "rw/config/qubes-vpn/profiles"),
    ):
        there = (root / path).exists()
        yield Result(
            OK if there else BAD, name, "there" if there else "not there"
        )
    manager = (root / "run/qubes-service/network-manager").exists()
    yield Result(
        BAD if manager else OK, "NetworkManager", "on" if manager else "off"
    )


def _first(text: str) -> str:
    return text.strip().partition("\n")[0][:120]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""


# --- redaction ---------------------------------------------------------------

_ADDRESS4: Final = re.compile(r"\b\d{1,3}(?:\.\d{1,3}){3}\b")
_ADDRESS6: Final = re.compile(
    # hardware addresses too: two colons at least, and not the time of day
    r"(?<![\w:])(?!\d\d:\d\d:\d\d(?![\w:]))(?=[0-9a-fA-F:]*:[0-9a-fA-F]*:)[0-9a-fA-F:]{3,39}(?![\w:])"
)
_HOST: Final = re.compile(
    r"\b(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,24}\b"
)
_SECRET: Final = re.compile(r"-----BEGIN.*?-----END[^\n]*", re.DOTALL)
_LONG: Final = re.compile(r"\b[A-Za-z0-9+/=]{40,}\b")
_KEPT_ENDINGS: Final = (
    *(".service", ".target", ".conf", ".py", ".nft", ".sh", ".ovpn"),
    *(".sock", ".json", ".socket", ".timer", ".device", ".mount"),
)


class Redactor:
    """Replaces what tells who and where by names that stay the same.

    names: words to hide wherever they are, such as profiles and users.
    """

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = sorted(
            (name for name in names if len(name) > 1), key=len, reverse=True
        )
        self._known: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Redact a text."""
        text = _SECRET.sub("[secret]", text)
        for name in self._names:
            text = re.sub(
                rf"(?<![\w-]){re.escape(name)}(?![\w-])",
                self._token("name", name),
                text,
            )
        text = _LONG.sub("[long]", text)
        text = _ADDRESS4.sub(lambda m: self._token("address", m[0]), text)
        text = _ADDRESS6.sub(lambda m: self._token("address", m[0]), text)
        return _HOST.sub(self._host, text)

    def _host(self, match: re.Match[str]) -> str:
        if match[0].endswith(_KEPT_ENDINGS):
            return match[0]
        return self._token("host", match[0].lower())

    def _token(self, kind: str, value: str) -> str:
        if value not in self._known:
            count = sum(t.startswith(f"<{kind}") for t in self._known.values())
            self._known[value] = f"<{kind}{count + 1}>"
        return self._known[value]
