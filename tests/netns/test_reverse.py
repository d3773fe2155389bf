"""Reverse lookups of private addresses: answered in the VPN qube, nowhere else.

The answering process is started as its units do it: with a socket of the VPN
qube, and in a network of its own that has nothing.
"""

import contextlib
import os
import socket
import subprocess
import sys
from ipaddress import ip_address

import dns.message
import dns.rcode
import pytest

from lab import addresses as at
from lab.namespace import kill
from qubes_vpn.policy.dns import REVERSE_PORT
from tests.netns.scene import Scene, wait

PRIVATE = (
    *("10.137.0.11", "10.138.5.6", "10.139.1.1", "10.0.0.1", "10.255.255.255"),
    *("172.16.0.1", "172.31.255.254", "192.168.1.1", "169.254.169.254"),
    "fd09:24ef:4179::a89:b",
)
PUBLIC = ("172.15.0.1", "172.32.0.1", "192.169.1.10", "1.2.3.10", "2001:db8::1")
NXDOMAIN = dns.rcode.NXDOMAIN


class Answering:
    """The process, and its socket in the VPN qube."""

    def __init__(self, namespace):
        with namespace.enter():
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        with sock:
            sock.bind(("::", REVERSE_PORT))
            number = sock.fileno()
            start = (
                f"import os, runpy; os.dup2({number}, 3);"
                ' runpy.run_module("qubes_vpn.runtime.reverse",'
                ' run_name="__main__")'
            )
            self.child = subprocess.Popen(
                ["unshare", "--net", sys.executable, "-c", start],
                env={**os.environ, "LISTEN_FDS": "1"},
                pass_fds=[number],
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        kill(self.child)


def asking(namespace, server=at.QUBES_DNS[0], port=at.DNS_PORT):
    """Give a socket of a qube, connected to a resolver."""
    family = socket.AF_INET if server.version == 4 else socket.AF_INET6
    with namespace.enter():
        sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.connect((str(server), port))
    # a limit only: no answer here takes a second
    sock.settimeout(5)
    return sock


def question(name):
    """Give a query: of a reverse lookup, if it is an address."""
    with contextlib.suppress(ValueError):
        name, kind = ip_address(name).reverse_pointer, "PTR"
        return dns.message.make_query(name, kind, use_edns=True)
    return dns.message.make_query(name, "A")


def ask(sock, name):
    """Ask; give the answer, which is one to this question."""
    query = question(name)
    sock.send(query.to_wire())
    answer = dns.message.from_wire(sock.recv(4096))
    assert query.is_response(answer)
    return answer


def silence(sock, name):
    sock.settimeout(0.3)
    with pytest.raises(TimeoutError):
        ask(sock, name)
    sock.settimeout(5)


def test_private_addresses_are_answered_here_and_others_in_the_tunnel():
    with Scene("ours") as scene, Answering(scene.lab.vpn):
        asked = scene.lab.tunnel_dns.asked
        with scene.capture() as capture, asking(scene.app) as sock:
            for address in PRIVATE:
                assert ask(sock, address).rcode() == NXDOMAIN, address
            assert not asked
            # letters of any case
            name = ip_address(PRIVATE[0]).reverse_pointer.upper()
            assert ask(sock, name).rcode() == NXDOMAIN
            assert not asked
            for address in PUBLIC:
                ask(sock, address)
            # each packet by itself: all of this is one flow
            assert ask(sock, at.WEB_NAME).answer
            assert ask(sock, PRIVATE[0]).rcode() == NXDOMAIN
            assert ask(sock, at.WEB_NAME).answer
            report = capture.report()
        assert [each.what for each in asked] == [
            *(ip_address(address).reverse_pointer for address in PUBLIC),
            *(at.WEB_NAME, at.WEB_NAME),
        ]
        assert not report.leaks, str(report)
        # the C library, with the resolvers that a qube has
        done = scene.app.run(["getent", "hosts", PRIVATE[0]], check=False)
        assert done.returncode == 2
        assert scene.app.run(["getent", "hosts", at.WEB_NAME]).stdout
        assert len(asked) > len(PUBLIC) + 2
        assert not any("137.10" in each.what for each in asked)


def test_private_addresses_are_answered_while_the_tunnel_is_down():
    with (
        Scene("ours", connect=False) as scene,
        Answering(scene.lab.vpn),
        asking(scene.app) as sock,
    ):
        # nothing of ours runs: the agent's input chain says no, at once
        with pytest.raises(OSError, match="No route to host"):
            ask(sock, PRIVATE[0])
        scene.server.stop()
        scene.appliance.connect(scene.profile)
        scene.appliance.wait_phase("connecting")
        for address in PRIVATE:
            assert ask(sock, address).rcode() == NXDOMAIN, address
        silence(sock, PUBLIC[0])
        silence(sock, at.WEB_NAME)
        scene.server.start()
        scene.appliance.wait_connected()
        assert ask(sock, PRIVATE[0]).rcode() == NXDOMAIN
        assert ask(sock, at.WEB_NAME).answer


def test_a_question_over_ipv6_is_answered_too():
    with (
        Scene("ours", ipv6=True) as scene,
        Answering(scene.lab.vpn),
        asking(scene.app, at.OUTSIDE_DNS6) as sock,
    ):
        for address in PRIVATE:
            assert ask(sock, address).rcode() == NXDOMAIN, address
        assert not scene.lab.outside_dns.asked


def test_without_the_answering_process_it_is_a_refusal_at_once():
    with Scene("ours") as scene, asking(scene.app) as sock:
        with pytest.raises(ConnectionRefusedError):
            ask(sock, PRIVATE[0])
        assert ask(sock, at.WEB_NAME).answer
        assert len(scene.lab.tunnel_dns.asked) == 1


def test_nobody_else_reaches_the_answering_process():
    with Scene("ours") as scene, Answering(scene.lab.vpn):
        with asking(scene.app) as sock:
            assert ask(sock, PRIVATE[0]).rcode() == NXDOMAIN
        lab = scene.lab
        for namespace, to in (
            (scene.app, at.VPN.ip4),
            (lab.net, at.VPN.ip4),
            (lab.internet, scene.tunnel_address),
        ):
            with asking(namespace, to, REVERSE_PORT) as sock:
                sock.settimeout(0.5)
                with pytest.raises(OSError, match=r"timed out|refused|route"):
                    ask(sock, PRIVATE[0])


def test_what_is_no_question_gets_no_answer():
    with Scene("ours") as scene, Answering(scene.lab.vpn) as answering:
        with asking(scene.app) as sock:
            good = question(PRIVATE[0]).to_wire()
            # an answer; two questions of which the second is missing
            sock.send(good[:2] + b"\x80" + good[3:])
            sock.send(good[:5] + b"\2" + good[6:])
            assert ask(sock, PRIVATE[0]).rcode() == NXDOMAIN
        wait(lambda: answering.child.poll() is None, "the process")
