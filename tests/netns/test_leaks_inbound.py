"""L33 to L37, L39 to L41, L48, L50: what comes in, and makes something leave."""

import contextlib
import socket
import struct
import time

import pytest

from lab import addresses as at
from lab.frames import Arp, Ip, parse
from lab.traffic import Flood
from tests.netns.scene import (
    Scene,
    frames,
    icmp_packet,
    ip4,
    proves,
    report,
    send_all,
    tcp_checked,
    udp,
    udp_packet,
)

QUBE = at.APPS[0].ip4
APP_PORT = 5555


def inject(scene, *packets, count=3):
    """Packets that arrive on eth0, from whoever is on the uplink."""
    for packet in packets:
        frames(scene.lab.net, "vif3.0", packet, count, to=at.VPN.mac)


def route_to_server(scene):
    return scene.lab.vpn.run(["ip", "route", "get", str(at.SERVER4)]).stdout


def quoted(proto=17, sport=4000, dport=at.VPN_PORT):
    """The beginning of a packet of ours to the server, as errors quote it."""
    ports = struct.pack(">HHHH", sport, dport, 100, 0)
    return ip4(at.VPN.ip4, at.SERVER4, proto, ports)


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_l33_a_redirect(kind):
    attacker = "10.137.0.99"
    with Scene(kind) as scene:
        names = ("all", "default", "eth0")
        if kind == "bare":
            # what the kernel does by itself when ip_forward is cleared
            scene.open_agent()
            values = {f"ipv4/conf/{n}/accept_redirects": 1 for n in names}
            scene.lab.vpn.sysctl(values)
        else:
            scene.lab.vpn.sysctl({"ipv4/ip_forward": 0})
            scene.lab.vpn.sysctl({"ipv4/ip_forward": 1})
        scene.lab.vpn.ip(
            f"neigh replace {attacker} lladdr {at.BACKEND_MAC} dev eth0"
            " nud permanent"
        )
        with scene.lab.vpn.enter():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.bind(("0.0.0.0", 4000))
            send_all(sock, (str(at.SERVER4), at.VPN_PORT), count=1)
            rest = socket.inet_aton(attacker)
            inject(
                scene,
                icmp_packet(at.NET.ip4, at.VPN.ip4, 5, 1, rest, quoted()),
            )
            time.sleep(0.1)
            assert (attacker in route_to_server(scene)) == (kind == "bare")


def arp_for(address):
    """Who has it? Asked by the net qube."""
    mac = bytes.fromhex(at.BACKEND_MAC.replace(":", ""))
    body = struct.pack(">HHBBH", 1, 0x800, 6, 4, 1)
    body += mac + at.NET.ip4.packed + bytes(6) + address.packed
    return b"\xff" * 6 + mac + b"\x08\x06" + body


def asked_by_arp(scene):
    address = scene.tunnel_address
    with scene.lab.net.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with raw:
        raw.bind(("vif3.0", 0))
        for who in (address, at.VPN.ip4):
            for _ in range(2):
                raw.send(arp_for(who))
    time.sleep(0.2)


@pytest.mark.parametrize("kind", ["peer", "ours"])
def test_l34_the_tunnels_address_by_arp(kind):
    with Scene(kind) as scene:
        with scene.capture() as capture:
            asked_by_arp(scene)
            capture.stop()
        senders = {
            packet.sender
            for out, frame in capture.frames()
            if out and isinstance(packet := parse(frame), Arp)
        }
        assert at.VPN.ip4 in senders, "its own address is answered for"
        assert (scene.tunnel_address in senders) == (kind == "peer")


def probed(scene):
    """CVE-2019-14899: is this the tunnel's address, is there a connection?"""
    address = scene.tunnel_address
    scene.open_agent()
    syn_ack = struct.pack(">HHIIBBHHH", 80, 4000, 1, 1, 0x50, 0x12, 99, 0, 0)
    inject(
        scene,
        ip4(at.WEB4, address, 6, tcp_checked(at.WEB4, address, syn_ack)),
        icmp_packet(at.WEB4, address, 8, 0, b"\0\1\0\1", b"CANARY ping"),
        udp_packet(at.WEB4, 53, address, 9999, b"CANARY probe"),
    )


@pytest.mark.parametrize("kind", ["routed", "ours"])
def test_l35_the_tunnels_address_is_probed_from_the_uplink(kind):
    with Scene(kind) as scene:
        address = scene.tunnel_address
        found = report(scene, probed)
        answers = [x for x in found.outside if x.what.source == address]
        assert bool(answers) == (kind == "routed")
        assert kind == "routed" or not found.outside


@pytest.mark.parametrize("kind", ["peer", "ours"])
def test_l36_a_packet_that_claims_to_come_from_the_tunnel(kind):
    """It must not be taken for the answer that a qube waits for."""
    with Scene(kind) as scene:
        with scene.app.enter():
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with sock:
            sock.bind(("0.0.0.0", APP_PORT))
            sock.settimeout(5)
            # an echo first: then the answer's way is known
            sock.sendto(b"CANARY first 0 ", (str(at.WEB4), at.ECHO_PORT))
            assert sock.recv(512)
            address = scene.tunnel_address
            inject(
                scene,
                udp_packet(
                    *(at.WEB4, at.ECHO_PORT, address, APP_PORT, b"INJECTED")
                ),
            )
            sock.settimeout(0.3)
            got = b""
            with contextlib.suppress(TimeoutError):
                got = sock.recv(512)
            assert (got == b"INJECTED") == (kind == "peer")
        if kind == "ours":
            scene.alive()


def outer_port(scene):
    """The source port of the tunnel's own packets."""
    with scene.capture() as capture, Flood(scene.app) as flood:
        flood.wait_echoes(3)
        capture.stop()
    return next(
        packet.source_port
        for out, frame in capture.frames()
        if out
        and isinstance(packet := parse(frame), Ip)
        and packet.destination == at.SERVER4
    )


@pytest.mark.parametrize("kind", ["peer", "ours"])
def test_l37_the_path_is_said_to_be_narrow(kind):
    with Scene(kind) as scene:
        port = outer_port(scene)
        rest = struct.pack(">HH", 0, 552)
        inject(
            scene,
            icmp_packet(
                *(at.NET.ip4, at.VPN.ip4, 3, 4, rest, quoted(sport=port))
            ),
        )
        time.sleep(0.1)
        assert ("mtu 552" in route_to_server(scene)) == (kind == "peer")


def from_the_tunnel(*packets):
    """Packets that the server makes up, into the tunnel."""

    def attack(scene):
        # the server's tunnel network as the source, or anything else
        lab = scene.lab.internet
        lab.ip(f"route replace 10.137.0.0/16 dev {scene.server_tun}")
        with lab.enter():
            raw = socket.socket(
                socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW
            )
        with raw:
            for make in packets:
                packet = make(scene)
                to = socket.inet_ntoa(packet[16:20])
                for _ in range(3):
                    raw.sendto(packet, (to, 0))
        time.sleep(0.2)

    return attack


def closed_port(scene):
    return udp_packet(
        *(at.WEB4, 7, scene.tunnel_address, 9999, b"CANARY probe")
    )


def closed_tcp(scene):
    syn = struct.pack(">HHIIBBHHH", 80, 9, 1, 0, 0x50, 2, 99, 0, 0)
    to = scene.tunnel_address
    return ip4(at.WEB4, to, 6, tcp_checked(at.WEB4, to, syn))


def test_l39_the_tunnels_address_is_probed_from_the_tunnel():
    """The kernel would answer by eth0, with the tunnel's address."""
    attack = from_the_tunnel(closed_port, closed_tcp)

    def opened(scene):
        scene.open_agent()
        attack(scene)

    proves(
        opened,
        control="routed",
        seen=lambda leak: str(leak.what.source).startswith("10.8."),
    )


def test_l40_a_packet_for_a_qube_dies_on_its_way():
    def dying(scene):
        return udp_packet(at.WEB4, 7, QUBE, 9, b"CANARY dying", ttl=1)

    attack = from_the_tunnel(dying)

    def opened(scene):
        scene.open_agent()
        if scene.kind == "routed":
            # routing holds it alone by these
            for priority in ("45", "45", "46", "46"):
                scene.lab.vpn.ip(f"rule del priority {priority}")
        attack(scene)

    proves(
        opened,
        control="routed",
        seen=lambda leak: leak.what.icmp == 11,
    )


def test_l41_the_server_uses_the_qube_as_a_router():
    def hairpin(scene):
        return udp_packet("10.8.0.1", 7, at.NET.ip4, 7, b"CANARY hairpin")

    proves(from_the_tunnel(hairpin))


def test_l41_the_server_opens_a_connection_to_a_qube():
    """Not a leak on the uplink: what arrives at the qube is counted."""

    def unasked(scene):
        return udp_packet(at.WEB4, 7, QUBE, 9, b"CANARY unasked")

    seen = {}
    for kind in ("peer", "ours"):
        with Scene(kind) as scene:
            scene.open_agent()
            with scene.app.enter():
                sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with sock:
                sock.bind(("0.0.0.0", 9))
                sock.settimeout(0.3)
                from_the_tunnel(unasked)(scene)
                seen[kind] = b""
                with contextlib.suppress(TimeoutError):
                    seen[kind] = sock.recv(100)
    assert seen == {"peer": b"CANARY unasked", "ours": b""}


def ports_to_server(capture):
    return {
        packet.source_port
        for out, frame in capture.frames()
        if out
        and isinstance(packet := parse(frame), Ip)
        and packet.destination == at.SERVER4
    }


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_l48_a_qube_takes_the_port_of_the_tunnel(kind):
    """CVE-2021-3773: the tunnel's packets would get another port."""
    port = 40000
    source = ("0.0.0.0", port)
    with Scene(kind, client_extra=(f"lport {port}",), connect=False) as scene:
        if kind == "bare":
            udp(scene.app, at.SERVER4, at.VPN_PORT, source=source)
            with scene.capture() as capture:
                udp(scene.lab.vpn, at.SERVER4, at.VPN_PORT, source=source)
                capture.stop()
            assert ports_to_server(capture) != {port}, "void: no control"
            return
        scene._profile = scene.profile.replace("nobind\n", "")
        with scene.capture() as capture:
            udp(scene.app, at.SERVER4, at.VPN_PORT, source=source)
            scene.connect()
            udp(scene.app, at.SERVER4, at.VPN_PORT, source=source)
            scene.alive()
            found = capture.report()
        assert ports_to_server(capture) == {port}
        assert not found.leaks
        tracked = scene.lab.vpn.run(["conntrack", "-L"]).stdout
        ours = f"src={at.VPN.ip4} dst={at.SERVER4}"
        assert ours not in tracked


FTP = 2121


def expected_connection(kind):
    """FTP: the qube announces a port, the server connects to it.

    Gives whether conntrack expects it, and what answered on the uplink.
    """
    with Scene(kind) as scene, contextlib.ExitStack() as closing:
        scene.lab.vpn.nft(f"""
            add table ip naive
            add ct helper ip naive ftp {{ type "ftp" protocol tcp; }}
            add chain ip naive f {{ type filter hook prerouting priority -50; }}
            add rule ip naive f tcp dport {FTP} ct helper set "ftp"
        """)
        with scene.lab.internet.enter():
            server = closing.enter_context(socket.socket())
        server.bind((str(at.WEB4), FTP))
        server.listen()
        with scene.app.enter():
            listening = closing.enter_context(socket.socket())
            control = closing.enter_context(socket.socket())
        listening.bind(("0.0.0.0", APP_PORT))
        listening.listen()
        control.connect((str(at.WEB4), FTP))
        peer = closing.enter_context(server.accept()[0])
        where = str(QUBE).replace(".", ",")
        high, low = divmod(APP_PORT, 256)
        for line in ("USER x", f"PORT {where},{high},{low}"):
            peer.sendall(b"200 go on\r\n")
            control.recv(100)
            control.sendall(f"{line}\r\n".encode())
            peer.recv(100)
        shown = scene.lab.vpn.run(["conntrack", "-L", "expect"], check=False)
        own = at.VPN.ip4 if kind == "bare" else scene.tunnel_address
        syn = struct.pack(">HHIIBBHHH", 20, APP_PORT, 1, 0, 80, 2, 99, 0, 0)
        checked = tcp_checked(at.WEB4, own, syn)
        found = report(
            scene, lambda s: inject(s, ip4(at.WEB4, own, 6, checked))
        )
        answers = [leak for leak in found.outside if leak.what.protocol == 6]
        return f"dport={APP_PORT}" in shown.stdout, answers


def test_l50_no_helper_lets_the_uplink_in():
    announced, answered = expected_connection("bare")
    assert announced
    assert answered, "void: no control"
    announced, answered = expected_connection("ours")
    assert not answered
