"""Three machines in a row, as network namespaces: app, vpn, internet.

    app 10.99.1.2 -- 10.99.1.1 vpn 10.99.2.1 -- 10.99.2.2 internet
                               tun ~~~~~~~~~~~~~ tun 10.8.0.1

The app's traffic to 10.8.0.1 takes the tunnel; to 10.99.2.2, plain
forwarding. MTU 1500, offloads of veth as they are by default. All clients have
the same masquerading and the same MSS clamp.
"""

import contextlib
import shutil
import sys
import tempfile
from ipaddress import IPv4Address
from pathlib import Path

from lab.namespace import Namespace
from lab.openvpn import Server, Settings, Wrap
from lab.ours import OurServer

TUN = "tun-vpn"
APP = "10.99.1.2"
INSIDE = "10.8.0.1"
OUTSIDE = "10.99.2.2"
# What OpenVPN's default mssfix gives an AEAD tunnel over IPv4 and UDP.
MSS = 1400
PUSH = ("ping 10", "ping-restart 60")

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


_MITIGATE = """
mount -t sysfs sysfs /sys
echo 30000 > /sys/class/net/uplink/gro_flush_timeout
echo 2 > /sys/class/net/uplink/napi_defer_hard_irqs
"""


class Rig:
    """The namespaces, cabled; a context manager.

    python: what runs our client.
    """

    def __init__(self, python: str = sys.executable) -> None:
        self.python = python

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

    def gro(self) -> None:
        """Have the client's end merge UDP datagrams, as a network card does.

        A veth does not by itself. The delay stands for a card's interrupt
        mitigation.
        """
        switch = ["ethtool", "-K", "uplink", "gro", "on"]
        self.vpn.run([*switch, "rx-udp-gro-forwarding", "on"])
        self.vpn.run(["unshare", "--mount", "sh", "-ec", _MITIGATE])

    def server(
        self,
        proto: str = "udp",
        cipher: str = "AES-256-GCM",
        *,
        ours: bool = False,
        push: tuple[str, ...] = PUSH,
        extra: tuple[str, ...] = (),
        wrap: Wrap = Wrap.TLS_CRYPT,
    ) -> Server:
        """A server, not started: an unmodified OpenVPN's, or ours."""
        settings = Settings(
            wrap=wrap,
            cipher=cipher,
            proto=proto,
            address=IPv4Address(OUTSIDE),
            push=push,
            extra=extra,
        )
        kind = _Ours if ours else Server
        return kind(self.internet, self.scratch, settings)


class _Ours(OurServer):
    words = ("--plane", "userspace")
