"""The link socket, against a stranger of this machine."""

import socket
import subprocess
import sys
from ipaddress import ip_address

import pytest

from qubes_vpn.system.sockets import open_link

LOOPBACK = "127.0.0.1"
TRIES = 300
FLOOD = f"""
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
to = ("{LOOPBACK}", {{port}})
print(flush=True)
for _ in range(5_000_000):
    sock.sendto(b"stranger", to)
"""


def free_port():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOOPBACK, 0))
        port: int = sock.getsockname()[1]
        return port


def test_what_came_before_there_was_a_peer_is_not_read():
    """Between bind and connect, a datagram of anybody is taken."""
    port = free_port()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer,
        subprocess.Popen(
            [sys.executable, "-c", FLOOD.format(port=port)],
            stdout=subprocess.PIPE,
        ) as flood,
    ):
        peer.bind((LOOPBACK, 0))
        try:
            assert flood.stdout.readline()
            for _ in range(TRIES):
                with open_link(
                    ip_address(LOOPBACK),
                    peer.getsockname()[1],
                    stream=False,
                    mark=0,
                    lport=port,
                ) as link:
                    with pytest.raises(BlockingIOError):
                        link.recv(100)
                    peer.sendto(b"answer", link.getsockname())
                    assert link.recv(100) == b"answer"
        finally:
            flood.kill()
