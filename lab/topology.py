"""A Qubes network: app qubes, a VPN qube, a net qube and an internet.

Interfaces, groups, addresses, neighbours, routes and the antispoof sets are
what the Qubes agent makes of them, in its order. See lab/addresses.py for the
picture.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Self

from lab import addresses as at
from lab.capture import Capture, Endpoint
from lab.namespace import Namespace
from lab.services import DnsServer, EchoServer, Service, WebServer

HERE = Path(__file__).parent
SCRATCH = "qubes-vpn-lab-"
ROUTE_METRIC = 32752
UPLINK_DOMID = 3
_counter = itertools.count(1)

_QUBE_FILES = {
    "/etc/resolv.conf": "".join(
        f"nameserver {address}\n" for address in at.QUBES_DNS
    ),
    "/run/qubes-vpn/.keep": "",
    "/run/qubes-service/.keep": "",
}


def _dnat_dns(*resolvers: IPv4Address) -> str:
    """The agent's dnat-dns chain: Qubes' two addresses to these resolvers."""
    pairs = zip(at.QUBES_DNS, itertools.cycle(resolvers), strict=False)
    rules = "".join(
        f"ip daddr {qubes} {proto} dport 53 dnat to {real}\n"
        for qubes, real in pairs
        for proto in ("udp", "tcp")
    )
    return f"""
        table ip qubes {{
            chain dnat-dns {{
                type nat hook prerouting priority dstnat; policy accept;
                {rules}
            }}
        }}
    """


class Lab:
    """The topology, from start() to close(); a context manager does both.

    ipv6: give everybody IPv6 addresses as well (Qubes: off by default).
    qubes_firewall: load the qubes-firewall service's tables in the VPN qube.
    Labs do not see each other, and need root (or a user namespace).
    """

    def __init__(
        self, *, ipv6: bool = False, qubes_firewall: bool = False
    ) -> None:
        self.ipv6 = ipv6
        self.qubes_firewall = qubes_firewall
        self.name = f"qv{os.getpid()}-{next(_counter)}"
        self.vpn_ip4 = at.VPN.ip4
        self._uplinks: list[IPv4Address | IPv6Address] = [at.VPN.ip6]
        self._apps: dict[int, Namespace] = {}
        self._closing = contextlib.ExitStack()
        self._services: list[Service] = []

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> Self:
        """Build it all; the VPN qube forwards in clear until told not to."""
        prefix = f"{SCRATCH}{os.getpid()}-"
        self.scratch = Path(tempfile.mkdtemp(prefix=prefix))
        self._closing.callback(shutil.rmtree, self.scratch, ignore_errors=True)
        self.internet = self._namespace("internet")
        self.net = self._namespace("net")
        self.vpn = self._namespace("vpn", private=True)
        self._build_internet()
        self._build_net()
        self._load_agent(self.vpn, _dnat_dns(*at.QUBES_DNS))
        if self.qubes_firewall:
            self.vpn.nft((HERE / "qubes-firewall.nft").read_text())
        self.plug_uplink()
        self._forward(self.vpn)
        for number in (1, 2):
            self._apps[number] = self._namespace(f"app{number}", private=True)
            self.attach_app(number)
        self._serve()
        return self

    def close(self) -> None:
        """Remove everything; harmless when repeated."""
        self._closing.close()

    def app(self, number: int) -> Namespace:
        """App qube 1 or 2."""
        return self._apps[number]

    def namespaces(self) -> dict[str, Namespace]:
        """All of them, by role."""
        apps = {f"app{number}": ns for number, ns in self._apps.items()}
        rest = {"vpn": self.vpn, "net": self.net, "internet": self.internet}
        return apps | rest

    def capture(self, *allowed: Endpoint) -> Capture:
        """Capture on the uplink; packets of eth0's to `allowed` are in order.

        It is taken on the net qube's side, where a local process of the VPN
        qube cannot hide from it. A context manager; ask its report().
        """
        return Capture(
            self.net,
            others=("lo", "wan0"),
            uplink=self._uplinks,
            gateway=(at.NET.ip4, at.NET.ip6),
            apps=tuple(
                address for app in at.APPS for address in (app.ip4, app.ip6)
            ),
            allowed=allowed,
        )

    def serve(self, service: Service) -> None:
        """Run one more service until close()."""
        self._services.append(service)
        self._closing.callback(service.close)

    @property
    def web(self) -> WebServer:
        """The web server and the log of what it was asked."""
        return next(s for s in self._services if isinstance(s, WebServer))

    @property
    def outside_dns(self) -> DnsServer:
        """The resolver of the internet provider, which should stay idle."""
        return self._dns("outside")

    @property
    def tunnel_dns(self) -> DnsServer:
        """The resolver behind the VPN server."""
        return self._dns("tunnel")

    def plug_uplink(self, ip4: IPv4Address = at.VPN.ip4) -> None:
        """Give the VPN qube its eth0, as starting or a new net qube does."""
        self.vpn_ip4 = ip4
        self._uplinks.append(ip4)
        self._cable(
            front=(self.vpn, "eth0", at.VPN.mac),
            back=(self.net, f"vif{UPLINK_DOMID}.0"),
        )
        self._downstream(
            self.net, UPLINK_DOMID, (ip4, at.VPN.ip6), at.VPN.mac, at.NET
        )
        self._uplink(self.vpn, (ip4, at.VPN.ip6), at.NET)

    def unplug_uplink(self) -> None:
        """Take eth0 away, as a change of the net qube does."""
        self._undo_downstream(self.net, UPLINK_DOMID, self.vpn_ip4, at.VPN.ip6)

    def attach_app(self, number: int) -> None:
        """Give an app qube its eth0 and the VPN qube its vif."""
        app, qube = self._apps[number], at.APPS[number - 1]
        self._cable(
            front=(app, "eth0", qube.mac), back=(self.vpn, f"vif{number}.0")
        )
        self._downstream(
            self.vpn, number, (qube.ip4, qube.ip6), qube.mac, at.VPN
        )
        self._uplink(app, (qube.ip4, qube.ip6), at.VPN)

    def detach_app(self, number: int) -> None:
        """Take an app qube's network away."""
        qube = at.APPS[number - 1]
        self._undo_downstream(self.vpn, number, qube.ip4, qube.ip6)

    def _dns(self, name: str) -> DnsServer:
        servers = (s for s in self._services if isinstance(s, DnsServer))
        return next(s for s in servers if s.name == name)

    def _namespace(self, role: str, *, private: bool = False) -> Namespace:
        files = _QUBE_FILES if private else None
        namespace = Namespace(f"{self.name}-{role}", private=files)
        self._closing.callback(namespace.close)
        namespace.ip("link set lo up")
        return namespace

    def _load_agent(self, qube: Namespace, dnat: str) -> None:
        qube.nft((HERE / "agent.nft").read_text() + dnat)

    def _forward(self, qube: Namespace) -> None:
        """What qubes-network does, and a distribution's loose rp_filter."""
        qube.sysctl(
            {
                "ipv4/conf/all/rp_filter": 2,
                "ipv4/ip_forward": 1,
                "ipv6/conf/all/forwarding": int(self.ipv6),
            }
        )

    def _cable(
        self, front: tuple[Namespace, str, str], back: tuple[Namespace, str]
    ) -> None:
        """Join two qubes: eth0 on one side, vifN.0 on the other."""
        qube, device, mac = front
        behind, vif = back
        behind.ip(f"""
            link add {vif} address {at.BACKEND_MAC} type veth peer \
name {device} address {mac} netns {qube.path}
        """)

    def _downstream(
        self,
        qube: Namespace,
        domid: int,
        client: tuple[IPv4Address, IPv6Address],
        mac: str,
        gateway: at.Qube,
    ) -> None:
        """A vif comes online: what vif-route-qubes does, in its order."""
        vif, (ip4, ip6) = f"vif{domid}.0", client
        qube.sysctl({f"ipv4/conf/{vif}/proxy_arp": 1})
        metric = ROUTE_METRIC - domid
        qube.ip(f"neigh replace {ip4} lladdr {mac} dev {vif} nud permanent")
        qube.nft(f"""
            add element ip qubes allowed {{ "{vif}" . {ip4} }}
            add element ip qubes downstream {{ {ip4} }}
        """)
        qube.ip(f"""
            link set {vif} group 2 up
            route add {ip4} dev {vif} metric {metric}
            addr add {gateway.ip4}/32 dev {vif}
        """)
        if not self.ipv6:
            return
        qube.nft(f"""
            add element ip6 qubes allowed {{ "{vif}" . {ip6} }}
            add element ip6 qubes downstream {{ {ip6} }}
        """)
        qube.ip(f"""
            neigh replace {ip6} lladdr {mac} dev {vif} nud permanent
            route add {ip6} dev {vif} metric {metric}
            addr add {gateway.ip6}/128 dev {vif} nodad
        """)

    def _undo_downstream(
        self, qube: Namespace, domid: int, ip4: IPv4Address, ip6: IPv6Address
    ) -> None:
        vif = f"vif{domid}.0"
        qube.nft(f"""
            delete element ip qubes allowed {{ "{vif}" . {ip4} }}
            delete element ip qubes downstream {{ {ip4} }}
        """)
        if self.ipv6:
            qube.nft(f"""
                delete element ip6 qubes allowed {{ "{vif}" . {ip6} }}
                delete element ip6 qubes downstream {{ {ip6} }}
            """)
        qube.ip(f"link del {vif}")

    def _uplink(
        self,
        qube: Namespace,
        own: tuple[IPv4Address, IPv6Address],
        gateway: at.Qube,
    ) -> None:
        """eth0 comes online: what setup-ip does."""
        ip4, ip6 = own
        mac = at.BACKEND_MAC
        qube.ip(f"""
            link set eth0 group 1
            addr add {ip4}/32 dev eth0
            link set eth0 up
            neigh replace {gateway.ip4} lladdr {mac} dev eth0 nud permanent
            route add {gateway.ip4} dev eth0
            route add default via {gateway.ip4} dev eth0 onlink
        """)
        if self.ipv6:
            qube.ip(f"""
                addr add {ip6}/128 dev eth0 nodad
                neigh replace {gateway.ip6} lladdr {mac} dev eth0 nud permanent
                route add {gateway.ip6} dev eth0
                route add default via {gateway.ip6} dev eth0 onlink
            """)

    def _build_internet(self) -> None:
        self.internet.ip(f"""
            link add isp0 type veth peer name wan0 netns {self.net.path}
            link set isp0 up
            addr add {at.ISP4}/24 dev isp0
            addr add {at.ISP6}/64 dev isp0 nodad
            route add local 198.51.100.0/24 dev lo
            addr add {at.WEB4}/32 dev lo
            addr add {at.OUTSIDE_DNS}/32 dev lo
            addr add {at.SERVER4}/32 dev lo
            addr add {at.SECOND_SERVER4}/32 dev lo
            addr add {at.RELAY4}/32 dev lo
            addr add {at.TUNNEL_DNS}/32 dev lo
            addr add {at.WEB6}/128 dev lo nodad
            addr add {at.OUTSIDE_DNS6}/128 dev lo nodad
            addr add {at.SERVER6}/128 dev lo nodad
            addr add {at.RELAY6}/128 dev lo nodad
        """)
        self.internet.sysctl(
            {"ipv4/ip_forward": 1, "ipv6/conf/all/forwarding": 1}
        )

    def _build_net(self) -> None:
        self.net.ip(f"""
            link set wan0 group 1 up
            addr add {at.NET_OUTSIDE4}/24 dev wan0
            addr add {at.NET_OUTSIDE6}/64 dev wan0 nodad
            route add default via {at.ISP4}
            route add default via {at.ISP6} dev wan0
        """)
        self._load_agent(self.net, _dnat_dns(at.OUTSIDE_DNS))
        self._forward(self.net)

    def _serve(self) -> None:
        zone = {at.WEB_NAME: (at.WEB4, at.WEB6)}
        outside = (at.OUTSIDE_DNS, at.OUTSIDE_DNS6)
        self.serve(WebServer(self.internet, at.WEB_PORT))
        self.serve(EchoServer(self.internet, (at.WEB4, at.WEB6)))
        self.serve(DnsServer("outside", self.internet, outside, zone))
        self.serve(DnsServer("tunnel", self.internet, (at.TUNNEL_DNS,), zone))
