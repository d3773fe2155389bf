"""Forwarding and NAT of a server's clients: one nft table of our own.

It is there while the server runs with --nat, and goes when it stops. It has
nothing to do with the lock of a VPN qube, which a server never loads.
"""

from typing import Final

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.system import sysctl
from qubes_vpn.system.nft import Nft

TABLE: Final = "inet qubes_vpn_server"
# OpenVPN's default, as the size of outer packets; and the most that is
# around an inner one: IPv6, UDP or a frame in TCP, data header, id and tag.
_MSSFIX: Final = 1492
_DATA: Final = 2 + 4 + 4 + 16
_OUTER: Final = 40 + 20 + _DATA
_FORWARDING: Final = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def render(profile: ServerProfile, device: str) -> str:
    """Give the transaction that replaces the table.

    Clients reach everything that this machine reaches, and not each other
    unless client-to-client; nothing outside reaches a client first.
    """
    forward = [
        f'iifname "{device}" oifname "{device}" '
        + ("accept" if profile.client_to_client else "drop"),
        f'oifname "{device}" ct state established,related accept',
        f'oifname "{device}" drop',
    ]
    clamp = [
        f'meta nfproto {family} {way} "{device}"'
        f" tcp flags & (syn | rst) == syn tcp option maxseg size set {mss}"
        for family, mss in _mss(profile)
        for way in ("iifname", "oifname")
    ]
    masquerade = [
        f'{family} saddr {network} oifname != "{device}" masquerade'
        for family, network in (
            ("ip", profile.network4),
            ("ip6", profile.network6),
        )
        if network
    ]
    return "\n".join(
        (
            f"add table {TABLE}",
            f"delete table {TABLE}",
            f"table {TABLE} {{",
            *_chain("forward", "filter hook forward priority filter", forward),
            *_chain("clamp", "filter hook forward priority mangle", clamp),
            *_chain(
                "postrouting",
                "nat hook postrouting priority srcnat",
                masquerade,
            ),
            "}\n",
        )
    )


def _mss(profile: ServerProfile) -> tuple[tuple[str, int], ...]:
    """Give the largest TCP segments that fit, as mssfix says; () for none."""
    if not profile.mssfix:
        return ()
    outer = profile.mssfix if profile.mssfix > 0 else _MSSFIX
    around = {"fixed": 0, "": _DATA, "mtu": _OUTER}[profile.mssfix_of]
    inner = outer - around
    return (("ipv4", inner - 40), ("ipv6", inner - 60))


def _chain(name: str, hook: str, rules: list[str]) -> list[str]:
    return [
        f" chain {name} {{",
        f"  type {hook}; policy accept;",
        *(f"  {rule}" for rule in rules),
        " }",
    ]


class Nat:
    """The table and the forwarding switches, while it is open."""

    def __init__(self, profile: ServerProfile, device: str) -> None:
        self._nft = Nft()
        self._before: dict[str, str] = {}
        self._nft.load(render(profile, device))
        for path in _FORWARDING:
            before = sysctl.read(path)
            if before == "0" and sysctl.write(path, 1):
                self._before[path] = before

    def close(self) -> None:
        """Take all of it back. Raises OsRefusedError."""
        problem: OsRefusedError | None = None
        for path, value in self._before.items():
            try:
                sysctl.write(path, int(value))
            except OsRefusedError as error:
                problem = error
        self._nft.load(f"add table {TABLE}\ndelete table {TABLE}\n")
        if problem:
            raise problem
