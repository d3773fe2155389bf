"""L28 to L32, L42, L43, L57 to L59: the VPN qube itself, and its qubes."""

import contextlib
import os
import socket
import struct
import sys
import threading
from pathlib import Path

import pytest

from lab import addresses as at
from lab.namespace import LabError, Namespace
from lab.traffic import ping
from qubes_vpn.policy.firewall import KEEPER_GID, MARK
from tests.netns.scene import (
    Scene,
    frames,
    ip4,
    leaks,
    link_socket,
    proves,
    send_all,
    tcp,
    udp,
    udp_packet,
)

SERVER = (str(at.SERVER4), at.VPN_PORT)
SHIPPED = Path("qubes_vpn/lockdown")


def chatter(scene):
    """IGMP, mDNS, LLMNR and SSDP of programs in the VPN qube."""
    with scene.lab.vpn.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        index = index_of(scene.lab.vpn, "eth0")
        group = socket.inet_aton("239.1.2.3")
        sock.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_ADD_MEMBERSHIP,
            group + bytes(4) + struct.pack("@i", index),
        )
        sock.setsockopt(
            socket.IPPROTO_IP,
            socket.IP_MULTICAST_IF,
            bytes(8) + struct.pack("@i", index),
        )
        for to, port in (
            ("224.0.0.251", 5353),
            ("224.0.0.252", 5355),
            ("239.255.255.250", 1900),
        ):
            send_all(sock, (to, port), count=2)


def index_of(namespace, device):
    with namespace.enter():
        return socket.if_nametoindex(device)


def test_l28_multicast_of_the_vpn_qube():
    proves(chatter, control="bare")


def broadcasts(scene):
    """A directed broadcast, and multicast with a way to go."""
    vpn = scene.lab.vpn
    vpn.ip("addr add 10.137.7.1/24 broadcast 10.137.7.255 dev eth0")
    for where in ("all", "vif1.0", "eth0"):
        with contextlib.suppress(OSError):
            vpn.sysctl({f"ipv4/conf/{where}/bc_forwarding": 1})
    for to in ("10.137.7.255", "224.0.0.251", "239.255.255.250"):
        udp(scene.app, to, 9)


def test_l29_broadcast_and_multicast_of_a_qube():
    proves(broadcasts, control="bare")


class Proxy:
    """tinyproxy, qvm-connect-tcp, socat: what comes in goes out as local."""

    def __init__(self, namespace):
        with namespace.enter():
            self.bound = socket.socket()
            self.out = socket.socket()
        self.bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.bound.bind((str(at.VPN.ip4), 8082))
        self.bound.listen()
        self.bound.settimeout(0.7)
        self.out.settimeout(0.5)
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        with contextlib.suppress(OSError):
            taken, _ = self.bound.accept()
            with taken:
                taken.settimeout(0.5)
                self.out.connect((str(at.WEB4), at.WEB_PORT))
                self.out.sendall(taken.recv(4096))

    def close(self):
        self.thread.join()
        self.bound.close()
        self.out.close()


def through_a_proxy(scene):
    scene.lab.vpn.nft(
        "add rule ip qubes custom-input iifgroup 2 tcp dport 8082 accept"
    )
    proxy = Proxy(scene.lab.vpn)
    tcp(scene.app, at.VPN.ip4, 8082, b"GET /CANARY HTTP/1.0\r\n\r\n")
    proxy.close()
    # and one that is reached in another way, such as qrexec
    tcp(scene.lab.vpn, at.WEB4, at.WEB_PORT)


def test_l30_a_service_that_forwards_for_qubes():
    proves(through_a_proxy, control="bare")


def own_traffic(scene):
    """Time, updates, connectivity checks."""
    vpn = scene.lab.vpn
    udp(vpn, at.WEB4, 123)
    tcp(vpn, at.WEB4, at.WEB_PORT)
    ping(vpn, count=2, wait=0.1)


def test_l31_what_the_vpn_qube_sends_for_itself():
    proves(own_traffic, control="bare")


@pytest.mark.parametrize("bypass", [False, True], ids=["queued", "bypass"])
def test_l32_frames_past_the_ip_stack(bypass):
    packet = udp_packet(at.VPN.ip4, 68, at.WEB4, 67, b"CANARY raw")
    proves(
        lambda scene: frames(scene.lab.vpn, "eth0", packet, bypass=bypass),
        control="bare",
    )


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_l42_one_qube_reaches_another(kind):
    with Scene(kind) as scene:
        scene.open_agent()
        got = ping(scene.app, to=at.APPS[1].ip4, wait=0.3)
        assert bool(got) == (kind == "bare")


def spoofed(scene):
    """A qube says it is the net qube: the answer would go there."""
    scene.open_agent()
    packet = udp_packet(at.NET.ip4, 9, at.VPN.ip4, 9, b"CANARY spoofed")
    frames(scene.app, "eth0", packet)
    # and what is passed on
    frames(scene.app, "eth0", ip4(at.NET.ip4, at.WEB4, 17, bytes(8)))


def test_l43_a_qube_with_anothers_address():
    proves(
        spoofed,
        control="bare",
        seen=lambda leak: leak.what.icmp == 3,
    )


# --- who may use the uplink


def test_l57_a_mark_is_no_authority():
    def with_mark(scene):
        with link_socket(scene.lab.vpn, gid=0) as sock:
            send_all(sock, SERVER)

    def with_group(scene):
        with link_socket(scene.lab.vpn, mark=0) as sock:
            send_all(sock, SERVER)

    def with_both(scene):
        with link_socket(scene.lab.vpn) as sock:
            send_all(sock, SERVER)

    with Scene("bare") as scene:
        assert leaks(scene, with_mark)
    with Scene("ours") as scene:
        assert leaks(scene, with_both), "void: nobody may"
        assert not leaks(scene, with_mark)
        assert not leaks(scene, with_group)


def test_l57_a_mark_from_a_qube_or_a_rule_of_others_is_cleared():
    """Somebody's rule marks what qubes send, before and after ours."""

    def marked(scene):
        scene.lab.vpn.nft(f"""
            add table inet other
            add chain inet other early {{
                type filter hook prerouting priority -1000;
            }}
            add chain inet other late {{
                type filter hook prerouting priority -10;
            }}
            add rule inet other early meta mark set {MARK:#x}
            add rule inet other late meta mark set {MARK:#x}
        """)
        udp(scene.app, at.SERVER4, at.VPN_PORT)
        udp(scene.app, at.WEB4, at.ECHO_PORT)

    proves(marked)


def test_l58_no_rule_of_ours_names_a_cgroup():
    """A path that is not there makes the whole file fail."""
    namespace = Namespace("cgroup-rule")
    try:
        naive = (
            "table inet naive { chain o { type filter hook output priority 0;"
            ' policy drop; socket cgroupv2 level 1 "no-such.slice" accept; } }'
        )
        with pytest.raises(LabError):
            namespace.nft(naive)
        assert not namespace.run(["nft", "list", "tables"]).stdout
    finally:
        namespace.close()
    files = list(SHIPPED.iterdir())
    assert {path.name for path in files} >= {"inet.nft", "netdev.nft"}
    for path in files:
        if path.is_file():
            assert "cgroup" not in path.read_text()


CHANGED = """
import os, socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 36, int(sys.argv[1]))
os.setgid(int(sys.argv[2]))
for _ in range(5):
    try: s.sendto(b"CANARY", (sys.argv[3], int(sys.argv[4])))
    except OSError: pass
"""


def test_l59_the_group_of_the_sockets_maker_counts():
    def later(scene):
        where = [at.SERVER4, at.VPN_PORT]
        words = map(str, (MARK, KEEPER_GID, *where))
        scene.lab.vpn.run([sys.executable, "-c", CHANGED, *words])

    def handed_over(scene):
        with link_socket(scene.lab.vpn) as sock:
            assert os.getgid() != KEEPER_GID
            send_all(sock, SERVER)

    with Scene("bare") as scene:
        assert leaks(scene, later)
    with Scene("ours") as scene:
        assert leaks(scene, handed_over), "void: nobody may"
        assert not leaks(scene, later)
