"""What the agent does in a qube, besides the tunnel: files, words, watching.

The decisions are here, with what they act on as arguments; `runtime.qube`
joins them with the loop.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Final, TypeAlias

RESOLV_CONF: Final = Path("/etc/resolv.conf")
DNAT_SCRIPT: Final = "/usr/lib/qubes/qubes-setup-dnat-to-ns"
DNAT_UNCHANGED: Final = 100
NOTICE_EVERY_S: Final = 60.0
NOTICE_MAX: Final = 300
SEARCH_MAX: Final = 6

Run: TypeAlias = Callable[[Sequence[str]], int]

_RELOAD: Final = (
    *("systemctl", "--no-block", "try-reload-or-restart"),
    "qubes-firewall.service",
)
_RESTART_PROXY: Final = (
    *("systemctl", "--no-block", "try-restart"),
    "qubes-updates-proxy.service",
)
_DOMAIN: Final = re.compile(r"[A-Za-z0-9-]{1,63}(\.[A-Za-z0-9-]{1,63}){0,8}")


def resolv_conf(dns: Sequence[str], search: Sequence[str]) -> str:
    """Give the text of resolv.conf: the tunnel's resolvers, or none.

    None at all is meant: then Qubes' script drops the qubes' queries, where
    its default would send them to the uplink's resolver.
    """
    servers = [f"nameserver {ip_address(address)}" for address in dns]
    domains = [word for word in search if _DOMAIN.fullmatch(word)]
    lines = ["# Written by qubes-vpn: the tunnel's resolvers.", *servers]
    if domains:
        lines.append(f"search {' '.join(domains[:SEARCH_MAX])}")
    return "\n".join(lines) + "\n"


class DnsFiles:
    """Keeps resolv.conf, Qubes' redirection and qubes-firewall in step.

    A qube's rule `specialtarget=dns` is matched after the redirection, with
    the resolvers of resolv.conf: so the file comes first, then Qubes' script,
    then qubes-firewall reads its rules again. `setup-ip` writes resolv.conf
    whenever the uplink comes back, so it is looked at now and then.
    """

    def __init__(self, run: Run, path: Path = RESOLV_CONF) -> None:
        self._run = run
        self._path = path
        self._text = ""

    def set(self, dns: Sequence[str], search: Sequence[str]) -> bool:
        """Put these resolvers in force; False if the file is refused."""
        self._text = resolv_conf(dns, search)
        return self._apply()

    def check(self) -> bool:
        """Put right what somebody else changed; False if that is refused."""
        return not self._text or self._is_ours() or self._apply()

    def _is_ours(self) -> bool:
        try:
            return self._path.read_text("utf-8") == self._text
        except (OSError, UnicodeDecodeError):
            return False

    def _apply(self) -> bool:
        try:
            if not self._is_ours():
                self._write()
        except OSError:
            return False
        self._redirect()
        return True

    def _write(self) -> None:
        # systemd-resolved's link must go, as setup-ip has it; a file that is
        # replaced whole is never read half
        temporary = self._path.with_name(f".{self._path.name}.qubes-vpn")
        temporary.write_text(self._text, "utf-8")
        temporary.chmod(0o644)
        try:
            temporary.replace(self._path)
        except OSError:
            # bound by somebody: written in place
            temporary.unlink(missing_ok=True)
            self._path.write_text(self._text, "utf-8")

    def _redirect(self) -> None:
        with contextlib.suppress(OSError):
            if self._run((DNAT_SCRIPT,)) == DNAT_UNCHANGED:
                return
        # 4.3's script does this too; there it is one more reload of the same
        for command in (_RELOAD, _RESTART_PROXY):
            with contextlib.suppress(OSError):
                self._run(command)


def dns_directives(address: str) -> str:
    """Give the lines that make a profile use this resolver and no other."""
    return (
        '\npull-filter ignore "dhcp-option DNS"\n'
        'pull-filter ignore "dhcp-option DNS6"\n'
        'pull-filter ignore "dns "\n'
        f"dhcp-option DNS {ip_address(address)}\n"
    )


@dataclass(slots=True)
class Notices:
    """Says things on the user's screen, seldom enough to be read.

    send: shows a title and a text. Each kind is shown at once, and not again
    for NOTICE_EVERY_S; what was held back is counted in the next.
    """

    send: Callable[[str, str], None]
    _last: dict[str, float] = field(default_factory=dict)
    _held: dict[str, int] = field(default_factory=dict)

    def show(self, kind: str, text: str, now: float) -> bool:
        """Show it, or count it; tell which."""
        last = self._last.get(kind)
        if last is not None and now - last < NOTICE_EVERY_S:
            self._held[kind] = self._held.get(kind, 0) + 1
            return False
        held = self._held.pop(kind, 0)
        self._last[kind] = now
        more = f" ({held} more like this)" if held else ""
        self.send(f"VPN: {kind}", markup(printable(text)) + more)
        return True


def printable(text: str) -> str:
    """Give one bounded line that cannot command a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)[:NOTICE_MAX]


def markup(text: str) -> str:
    """Give text as the body of a notification, which is markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def notify_command(user: str, uid: int, title: str, text: str) -> list[str]:
    """Give the command that shows a notification in the user's session."""
    return [
        *("runuser", "-u", user, "--", "env"),
        "DISPLAY=:0",
        f"DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/{uid}/bus",
        *("notify-send", "--app-name=qubes-vpn", "--icon=network-vpn"),
        *("--", title, text),
    ]


# --- other VPN programs ------------------------------------------------------

# units, and the name that a user knows the program by
FOREIGN_UNITS: Final = {
    "qubes-vpn-handler.service": "Qubes-vpn-support",
    "qubes-tunnel.service": "qubes-tunnel",
    "openvpn.service": "openvpn",
    "openvpn-client@": "openvpn",
    "openvpn@": "openvpn",
    "wg-quick@": "wg-quick",
    "mullvad-daemon.service": "Mullvad VPN",
    "ivpn-service.service": "IVPN",
    "nordvpnd.service": "NordVPN",
    "expressvpn.service": "ExpressVPN",
    "protonvpn": "Proton VPN",
    "tailscaled.service": "Tailscale",
}
FOREIGN_COMMANDS: Final = {
    "openvpn": "openvpn",
    "openvpn3-service": "openvpn3",
    "mullvad-daemon": "Mullvad VPN",
    "ivpn-service": "IVPN",
    "nordvpnd": "NordVPN",
    "expressvpnd": "ExpressVPN",
    "tailscaled": "Tailscale",
    "wireguard-go": "wireguard-go",
    "openconnect": "openconnect",
    "vpnc": "vpnc",
}


def foreign_programs(commands: Iterable[str]) -> tuple[str, ...]:
    """Name the other VPN programs among the names of running processes."""
    found = {
        FOREIGN_COMMANDS[name] for name in commands if name in FOREIGN_COMMANDS
    }
    return tuple(sorted(found))


def running_commands(proc: Path = Path("/proc")) -> Iterator[str]:
    """Give the names of the processes of this network namespace."""
    try:
        ours = os.readlink(proc / "self/ns/net")
    except OSError:
        ours = ""
    for path in proc.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.readlink(path / "ns/net") == ours:
                yield (path / "comm").read_text("utf-8", "replace").strip()


# --- web logins --------------------------------------------------------------

URL_MAX: Final = 2000
_URL: Final = re.compile(
    r"https://(?P<host>[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)"
    r"(:(?P<port>[1-9][0-9]{0,4}))?"
    r"(/[A-Za-z0-9._~/%+=-]*)?(\?[A-Za-z0-9._~/%&=+:,-]*)?"
)


def web_login_url(untrusted: str) -> str:
    """Check an address that a server wants opened. Raises ValueError.

    https only, a name with a dot and without a user, ASCII that no shell,
    log or address bar can take for something else, and nobody's own network.
    """
    if len(untrusted) > URL_MAX:
        raise ValueError("the address is too long")
    match = _URL.fullmatch(untrusted)
    if match is None:
        raise ValueError("it is not a plain https address")
    host = match["host"].lower()
    if int(match["port"] or 443) > 0xFFFF:
        raise ValueError("the port is out of range")
    if "." not in host or ".." in host or "xn--" in host:
        raise ValueError("the host's name is not plain")
    if host.rpartition(".")[2].isdigit() or host.endswith(
        (".local", ".internal", ".localhost", ".onion", ".home.arpa")
    ):
        raise ValueError("the host is not one of the public internet")
    return untrusted
