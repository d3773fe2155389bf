"""Three machines in a row, as network namespaces: app, vpn, internet.

    app 10.99.1.2 -- 10.99.1.1 vpn 10.99.2.1 -- 10.99.2.2 internet
                               tun ~~~~~~~~~~~~~ tun 10.8.0.1

The app's traffic to 10.8.0.1 takes the tunnel; to 10.99.2.2, plain
forwarding. MTU 1500, offloads of veth as they are by default. All clients have
the same masquerading and the same MSS clamp.
"""

import contextlib
import shutil
import tempfile
from ipaddress import IPv4Address
from pathlib import Path

from lab.namespace import Namespace
from lab.openvpn import Server, Settings, Wrap

TUN = "tun-vpn"
APP = "10.99.1.2"
INSIDE = "10.8.0.1"
OUTSIDE = "10.99.2.2"
# What OpenVPN's default mssfix gives an AEAD tunnel over IPv4 and UDP.
MSS = 1400

_RULES = f"""
table inet bench {{
    chain forward {{
        type filter hook forward priority mangle;
        oifname "{TUN}" tcp flags syn tcp option maxseg size set {MSS}
        iifname "{TUN}" tcp flags syn tcp option maxseg size set {MSS}
    }}
    chain out {{
        type nat hook postrouting priority srcnat;
        oifname {{ "{TUN}", "uplink" }} masquerade
    }}
}}
"""


class Rig:
    """The namespaces, cabled; a context manager."""

    def __enter__(self) -> "Rig":
        self._closing = contextlib.ExitStack()
        self.scratch = Path(tempfile.mkdtemp(prefix="qubes-vpn-bench-"))
        self._closing.callback(shutil.rmtree, self.scratch, ignore_errors=True)
        self.app, self.vpn, self.internet = (
            self._closing.enter_context(contextlib.closing(Namespace(name)))
            for name in ("app", "vpn", "internet")
        )
        self.app.ip(f"""
            link set lo up
            link add uplink type veth peer name downlink netns {self.vpn.path}
            addr add {APP}/24 dev uplink
            link set uplink up
            route add default via 10.99.1.1 dev uplink
        """)
        far = self.internet.path
        self.vpn.ip(f"""
            link set lo up
            addr add 10.99.1.1/24 dev downlink
            link set downlink up
            link add uplink type veth peer name downlink netns {far}
            addr add 10.99.2.1/24 dev uplink
            link set uplink up
        """)
        self.internet.ip(f"""
            link set lo up
            addr add {OUTSIDE}/24 dev downlink
            link set downlink up
        """)
        self.vpn.sysctl({"ipv4/ip_forward": 1})
        self.vpn.nft(_RULES)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def server(self, proto: str = "udp", cipher: str = "AES-256-GCM") -> Server:
        """An unmodified OpenVPN server, not started."""
        return Server(
            self.internet,
            self.scratch,
            Settings(
                wrap=Wrap.TLS_CRYPT,
                cipher=cipher,
                proto=proto,
                address=IPv4Address(OUTSIDE),
                push=("ping 10", "ping-restart 60"),
            ),
        )
