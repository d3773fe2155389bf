"""What each layer holds alone, in pairs, and together; the table is printed.

The phase is Connected, as the keeper loads it, and the engine is this test: it
holds the tunnel's device. Nobody repairs what is taken away. A cell is the
number of packets that went where they must not.
"""

import contextlib
import itertools
import os
import socket
import struct
import time
from ipaddress import ip_address

import pytest

from lab import Lab
from lab import addresses as at
from lab.appliance import Appliance
from lab.traffic import resolve
from qubes_vpn.policy import firewall, uplink
from qubes_vpn.policy.phase import Connected
from qubes_vpn.system import tun
from tests.netns.scene import (
    canary,
    frames,
    ip4,
    link_socket,
    send_all,
    tcp,
    tcp_checked,
    udp,
    udp_packet,
)
from tests.netns.test_lockdown import REMOVE, ipv6_again
from tests.netns.toy import ALLOWED, ENDPOINT

LAYERS = ("filter", "routing", "uplink")
SETS = [
    chosen
    for count in range(4)
    for chosen in itertools.combinations(LAYERS, count)
]
FORWARDED = ("killed", "route", "to server", "IPv6", "names", "proxied flow")
LOCAL = ("local tcp", "local udp", "flap", "injected", "tun probe", "icmp")
RAW = ("raw", "raw bypass")
COLUMNS = (*FORWARDED, *LOCAL, *RAW)
RESIDUE = {
    (): set(COLUMNS),
    # ICMP of its own has rules of its own. What claims to come from the tunnel is routed into the tunnel: only
    # what the tunnel's device brings is looked up where the qubes are
    ("routing",): {*LOCAL, *RAW} - {"injected", "icmp"},
    ("filter",): set(RAW),
    ("filter", "routing"): set(RAW),
}
TUN4 = "10.8.0.2"
RAW_PACKET = udp_packet(at.VPN.ip4, 68, at.WEB4, 67, b"CANARY raw")


class Rig:
    """A lab in phase Connected with some of the layers."""

    def __init__(self, layers):
        self.layers = layers
        self.lab = Lab(ipv6=True)

    def __enter__(self):
        lab = self.lab.start()
        Appliance(lab).lock()
        phase = Connected(ENDPOINT, "tun-vpn", (at.TUNNEL_DNS,))
        own = [at.VPN.ip4]
        defines = firewall.defines("eth0", firewall.KEEPER_GID)
        lab.vpn.nft(
            (defines + firewall.render(phase, own)).replace(
                "redefine", "define"
            )
        )
        lab.vpn.nft(
            (defines + uplink.render(phase, own)).replace("redefine", "define")
        )
        for name in LAYERS:
            if name not in self.layers:
                REMOVE[name](lab)
        with lab.vpn.enter():
            self.device = os.open(tun.PATH, os.O_RDWR | os.O_CLOEXEC)
            tun.attach(self.device, "tun-vpn", vnet_hdr=False)
        lab.vpn.sysctl({"ipv6/conf/tun-vpn/disable_ipv6": 1})
        lab.vpn.ip(f"""
            link set tun-vpn up
            addr add {TUN4}/24 dev tun-vpn
        """)
        if "routing" in self.layers:
            lab.vpn.ip("route add default dev tun-vpn table 7078")
        ipv6_again(lab)
        # what the agent's chains would also stop is not what is tested
        for family in ("ip", "ip6"):
            lab.vpn.nft(f"flush chain {family} qubes input")
            lab.vpn.nft(f"add chain {family} qubes input {{ policy accept; }}")
        time.sleep(0.2)
        return self

    def __exit__(self, *_):
        self.kill()
        self.lab.close()

    def kill(self):
        if self.device >= 0:
            os.close(self.device)
            self.device = -1

    def row(self):
        """Give the count of each column; the engine's end comes last."""
        row = {
            name: globals()[f"_{name.replace(' ', '_')}"](self)
            for name in COLUMNS
            if name != "killed"
        }
        return row | {"killed": _killed(self)}

    def count(self, attack, seen=canary, settle=0.15):
        with self.lab.capture(ALLOWED) as capture:
            attack()
            time.sleep(settle)
        return sum(map(seen, capture.report().leaks))


def _killed(rig):
    def attack():
        for _ in range(5):
            udp(rig.lab.app(1), at.WEB4, at.ECHO_PORT, count=1)
            rig.kill()
        tcp(rig.lab.app(1), at.WEB4, at.WEB_PORT, wait=0.1)

    return rig.count(attack)


def _route(rig):
    rig.lab.vpn.ip(
        f"route replace 198.51.100.0/25 via {at.NET.ip4} dev eth0 onlink"
    )
    return rig.count(lambda: udp(rig.lab.app(1), at.WEB4, at.ECHO_PORT))


def _to_server(rig):
    return rig.count(lambda: udp(rig.lab.app(1), at.SERVER4, at.VPN_PORT))


def _IPv6(rig):  # noqa: N802 the column's name
    return rig.count(lambda: udp(rig.lab.app(1), at.WEB6, at.ECHO_PORT))


def _names(rig):
    def attack():
        with contextlib.suppress(OSError):
            resolve(rig.lab.app(1), timeout=0.2)

    return rig.count(attack)


def _proxied_flow(rig):
    """A connection of a qube that other rules redirect to the uplink."""
    rig.lab.vpn.nft(f"""
        add chain ip qubes forced {{
            type nat hook prerouting priority dstnat;
        }}
        add rule ip qubes forced iifgroup 2 udp dport 4445 dnat to {at.WEB4}:7
    """)
    return rig.count(lambda: udp(rig.lab.app(1), at.OUTSIDE_DNS, 4445))


def _local_tcp(rig):
    return rig.count(lambda: tcp(rig.lab.vpn, at.WEB4, at.WEB_PORT, wait=0.2))


def _local_udp(rig):
    return rig.count(lambda: udp(rig.lab.vpn, at.WEB4, 123))


def _raw(rig):
    return rig.count(lambda: frames(rig.lab.vpn, "eth0", RAW_PACKET))


def _raw_bypass(rig):
    return rig.count(
        lambda: frames(rig.lab.vpn, "eth0", RAW_PACKET, bypass=True)
    )


def _flap(rig):
    def attack():
        rig.lab.vpn.ip(f"""
            link set eth0 down
            link set eth0 up
            route replace {at.NET.ip4} dev eth0
            route replace default via {at.NET.ip4} dev eth0 onlink
        """)

    return rig.count(attack, lambda leak: "ff02" in str(leak), settle=1)


def _injected(rig):
    """Taken by a qube for what it waits for from the tunnel."""
    route = f"{at.WEB4}/32 dev tun-vpn"
    rig.lab.vpn.ip(f"route replace {route}")
    with rig.lab.app(1).enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("0.0.0.0", 5555))
        sock.settimeout(0.2)
        sock.sendto(b"CANARY", (str(at.WEB4), at.ECHO_PORT))
        time.sleep(0.05)
        packet = udp_packet(at.WEB4, at.ECHO_PORT, TUN4, 5555, b"INJECTED")
        frames(rig.lab.net, "vif3.0", packet, 3, to=at.VPN.mac)
        got = 0
        with contextlib.suppress(TimeoutError):
            while sock.recv(100):
                got += 1
    rig.lab.vpn.ip(f"route del {route}")
    return got


def _tun_probe(rig):
    """The kernel answers what the tunnel asks, by eth0."""
    syn = struct.pack(">HHIIBBHHH", 80, 9, 1, 0, 0x50, 2, 99, 0, 0)
    probes = (
        udp_packet(at.WEB4, 7, TUN4, 9999, b"CANARY probe"),
        ip4(at.WEB4, TUN4, 6, tcp_checked(at.WEB4, ip_address(TUN4), syn)),
        # it dies here, on its way to a qube
        udp_packet(at.WEB4, 7, at.APPS[0].ip4, 9, b"CANARY", ttl=1),
    )
    return rig.count(
        lambda: [os.write(rig.device, probe) for probe in probes],
        lambda leak: leak.what.protocol in (1, 6),
    )


def _icmp(rig):
    """The server goes on sending when the client's socket is gone."""

    def attack():
        with link_socket(rig.lab.vpn) as sock:
            sock.bind(("0.0.0.0", 4000))
            send_all(sock, (str(at.SERVER4), at.VPN_PORT), b"x", count=1)
        packet = udp_packet(at.SERVER4, at.VPN_PORT, at.VPN.ip4, 4000, b"y")
        frames(rig.lab.net, "vif3.0", packet, 3, to=at.VPN.mac)

    return rig.count(attack, lambda leak: leak.what.protocol == 1)


@pytest.fixture(scope="module")
def table():
    rows = {}
    for layers in SETS:
        with Rig(layers) as rig:
            rows[layers] = rig.row()
    return rows


def shown(table):
    width = max(map(len, COLUMNS))
    names = ["+".join(layers) or "none" for layers in table]
    yield " " * width + "  " + "  ".join(names)
    for column in COLUMNS:
        cells = (
            f"{row[column]:>{len(name)}}"
            for name, row in zip(names, table.values(), strict=True)
        )
        yield f"{column:{width}}  " + "  ".join(cells)


def test_the_table(table, capsys):
    with capsys.disabled():
        print("", *shown(table), sep="\n")  # noqa: T201 it is to be seen


@pytest.mark.parametrize("layers", SETS, ids=lambda s: "+".join(s) or "none")
def test_what_is_left_is_what_is_listed(table, layers):
    """Without any layer every column leaks: the battery is no void."""
    found = {column for column, count in table[layers].items() if count}
    assert found == RESIDUE.get(layers, set())


def test_no_layer_alone_lets_a_qubes_packet_out_in_clear(table):
    for layers in SETS[1:]:
        assert not any(table[layers][column] for column in FORWARDED)
