"""An endpoint with an IPv6 address: it is reached, nothing else of IPv6 is."""

import socket
import time

from lab import Endpoint as Allowed
from lab import addresses as at
from qubes_vpn.keeper import messages
from qubes_vpn.policy.phase import Endpoint, Transport
from tests.netns.toy import Rig, lock, wait

ENDPOINT6 = Endpoint(at.SERVER6, Transport.UDP, at.VPN_PORT)
ALLOWED6 = Allowed(at.SERVER6, "udp", at.VPN_PORT)


def address_again(lab):
    """What the agent does when IPv6 is back on the uplink; no neighbours."""
    lab.vpn.ip(f"""
        addr add {at.VPN.ip6}/128 dev eth0 nodad
        neigh flush dev eth0 nud permanent
        neigh replace {at.NET.ip4} lladdr {at.BACKEND_MAC} dev eth0 nud permanent
        route add {at.NET.ip6} dev eth0
        route add default via {at.NET.ip6} dev eth0 onlink
    """)


def neighbours(lab):
    return lab.vpn.run(["ip", "-6", "neigh", "show", "dev", "eth0"]).stdout


def test_neighbour_discovery_works_and_nothing_else_leaves(lab6):
    lock(lab6)
    assert disabled(lab6) == "1\n"
    with lab6.internet.enter():
        server = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with server, Rig(lab6, server=False) as rig:
        server.bind((str(at.SERVER6), at.VPN_PORT))
        server.settimeout(5)
        with lab6.capture(ALLOWED6) as capture:
            rig.adopt(ENDPOINT6)
            assert disabled(lab6) == "0\n"
            address_again(lab6)
            _, (number,) = rig.engine.request(messages.OpenLink(0))
            sets = rig.nft("list", "set", "netdev", "qubes_vpn", "address6")
            wait(lambda: str(at.VPN.ip6) in sets, "our address")
            with socket.socket(fileno=number) as link:
                link.send(b"hello")
                data, peer = server.recvfrom(100)
                server.sendto(b"back", peer)
                link.settimeout(5)
                assert (data, link.recv(100)) == (b"hello", b"back")
            assert str(at.NET.ip6) in neighbours(lab6)
            # router solicitations and multicast reports of a new link
            lab6.vpn.ip("""
                link set eth0 down
                link set eth0 up
            """)
            time.sleep(1)
        report = capture.report()
        assert report.tunnel == 1
        assert report.leaks == ()
        rig.agent.request(messages.SetEndpoints(()))
        assert disabled(lab6) == "1\n"


def disabled(lab):
    name = "net.ipv6.conf.eth0.disable_ipv6"
    return lab.vpn.run(["sysctl", "-n", name]).stdout
