"""Who has which address in the lab.

        app1 ── vif1.0 ┐                                     ┌ web
                       ├ vpn  eth0 ── vif3.0  net  wan0 ── isp0  internet
        app2 ── vif2.0 ┘                                     └ VPN server

Qubes' own ranges inside, documentation ranges (RFC 5737, RFC 3849) outside.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

BACKEND_MAC = "fe:ff:ff:ff:ff:ff"
"""What every network back end of Qubes answers with."""


@dataclass(frozen=True, slots=True)
class Qube:
    """A qube's addresses, as Qubes derives them from its number."""

    name: str
    qid: int
    ip4: IPv4Address
    ip6: IPv6Address
    mac: str


def _qube(name: str, qid: int) -> Qube:
    return Qube(
        name,
        qid,
        IPv4Address(f"10.137.0.{qid}"),
        IPv6Address(f"fd09:24ef:4179::a89:{qid:x}"),
        f"00:16:3e:5e:6c:{qid:02x}",
    )


APPS = (_qube("app1", 11), _qube("app2", 12))
VPN = _qube("vpn", 20)
NET = _qube("net", 6)

QUBES_DNS = (IPv4Address("10.139.1.1"), IPv4Address("10.139.1.2"))

NET_OUTSIDE4 = IPv4Address("203.0.113.2")
NET_OUTSIDE6 = IPv6Address("2001:db8:ffff::2")
ISP4 = IPv4Address("203.0.113.1")
ISP6 = IPv6Address("2001:db8:ffff::1")

WEB4 = IPv4Address("198.51.100.80")
WEB6 = IPv6Address("2001:db8:80::80")
OUTSIDE_DNS = IPv4Address("198.51.100.53")
OUTSIDE_DNS6 = IPv6Address("2001:db8:53::53")
SERVER4 = IPv4Address("192.0.2.10")
SERVER6 = IPv6Address("2001:db8:2::10")
SECOND_SERVER4 = IPv4Address("192.0.2.11")
RELAY4 = IPv4Address("192.0.2.20")
RELAY6 = IPv6Address("2001:db8:2::20")

TUNNEL_DNS = IPv4Address("10.8.255.53")

WEB_PORT = 80
DNS_PORT = 53
ECHO_PORT = 7
VPN_PORT = 1194
WEB_NAME = "web.canary.example"
