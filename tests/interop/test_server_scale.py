"""Many clients and many forgers, against one server process."""

import contextlib
import os
import re
import selectors
import socket
import struct
import time
from pathlib import Path

import pytest

from lab.namespace import Namespace
from lab.openvpn import STARTED, Client, Settings, Wrap, client_profile
from lab.ours import OurServer
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.engine import effects as do
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.states import Established
from qubes_vpn.engine.traffic import Traffic

HERE = "192.0.2.10"
CLIENTS = 200
# "within 30 s on 2 cores"; here both ends and other work share them
LIMIT = 90.0
MEMORY_PER_CLIENT = 150_000
FORGED = 100_000


@pytest.fixture
def namespace():
    made = Namespace(f"qvscale{os.getpid()}")
    made.ip("link set lo up\naddr add 192.0.2.10/32 dev lo")
    yield made
    made.close()


def start(namespace, tmp_path, **fields):
    settings = Settings(**fields)
    server = OurServer(namespace, tmp_path, settings)
    server.start()
    text = client_profile(settings, server.pki)
    return server, parse_client_profile(text, "client", None)


def memory(server):
    """Give the resident bytes of the server process."""
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024


def now():
    return Now(time.monotonic(), time.time())


class Swarm:
    """Client engines in this process, each with a socket of its own."""

    def __init__(self, namespace, profile, count):
        self.selector = selectors.DefaultSelector()
        self.engines = []
        self.failed = []
        with namespace.enter():
            for _ in range(count):
                link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                link.connect((HERE, 1194))
                link.setblocking(False)
                engine = ClientEngine(
                    profile,
                    profile.remotes[0],
                    entropy=os.urandom,
                    traffic=Traffic(),
                    credentials=profile.auth_user_pass,
                )
                self.engines.append((engine, link))
                self.selector.register(
                    link, selectors.EVENT_READ, (engine, link)
                )
        for engine, link in self.engines:
            engine.start(now())
            self.drain(engine, link)

    def drain(self, engine, link):
        while effect := engine.poll():
            if isinstance(effect, do.Send):
                link.send(effect.datagram)
            elif isinstance(effect, do.Ended):
                self.failed.append(effect)

    def connected(self):
        return sum(
            isinstance(engine.state, Established) for engine, _ in self.engines
        )

    def run(self, limit):
        end = time.monotonic() + limit
        while self.connected() < len(self.engines):
            assert time.monotonic() < end, f"{self.connected()} connected"
            assert not self.failed
            for key, _ in self.selector.select(0.05):
                engine, link = key.data
                try:
                    while True:
                        datagram = link.recv(65536)
                        if datagram[0] >> 3 not in (6, 9):
                            engine.receive(datagram, now())
                except BlockingIOError:
                    pass
                self.drain(engine, link)
            for engine, link in self.engines:
                if engine.deadline() <= time.monotonic():
                    engine.expire(now())
                    self.drain(engine, link)

    def close(self):
        for _, link in self.engines:
            link.close()
        self.selector.close()


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [Wrap.TLS_CRYPT, Wrap.TLS_CRYPT_V2])
def test_200_clients_connect_at_once_and_idle_in_little_memory(
    namespace, tmp_path, record_property, wrap
):
    server, profile = start(namespace, tmp_path, wrap=wrap)
    first = Swarm(namespace, profile, 5)
    first.run(LIMIT)
    before = memory(server)
    began = time.monotonic()
    swarm = Swarm(namespace, profile, CLIENTS)
    swarm.run(LIMIT)
    took = time.monotonic() - began
    each = (memory(server) - before) / CLIENTS
    record_property("seconds for 200 clients", round(took, 1))
    record_property("bytes of memory each", round(each))
    assert each < MEMORY_PER_CLIENT
    swarm.close()
    first.close()
    server.stop()


def forge(namespace, count):
    """Send forged resets from many ports; give bytes sent and received."""
    sent = received = 0
    sockets = []
    with namespace.enter():
        for _ in range(64):
            link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            link.connect((HERE, 1194))
            link.setblocking(False)
            sockets.append(link)
    for n in range(count):
        link = sockets[n % len(sockets)]
        datagram = struct.pack("!B8sBI", 0x38, os.urandom(8), 0, 0)
        link.send(datagram)
        sent += len(datagram)
        with contextlib.suppress(BlockingIOError):
            received += len(link.recv(2048))
        if n % 50 == 0:
            time.sleep(0.001)  # not faster than the socket's buffer empties
    for link in sockets:
        link.close()
    return sent, received


@pytest.mark.slow
@pytest.mark.parametrize("wrap", [Wrap.PLAIN, Wrap.TLS_CRYPT])
def test_a_flood_of_forged_first_packets_costs_nothing(
    namespace, tmp_path, wrap
):
    server, profile = start(namespace, tmp_path, wrap=wrap)
    forge(namespace, 5000)
    before = memory(server)
    sent, received = forge(namespace, FORGED)
    grown = memory(server) - before
    assert grown < 1_000_000
    assert received < sent
    # in the middle of another flood
    pid = os.fork()
    if pid == 0:
        forge(namespace, 30_000)
        os._exit(0)
    try:
        swarm = Swarm(namespace, profile, 1)
        swarm.run(LIMIT)
        swarm.close()
    finally:
        os.waitpid(pid, 0)
        server.stop()


@pytest.mark.slow
def test_dozens_of_openvpn_clients_at_once(namespace, tmp_path):
    server, _ = start(namespace, tmp_path, push=(), extra=('push "ping 5"',))
    text = server.client_profile()
    clients = []
    for number in range(24):
        client = Client(
            namespace,
            tmp_path,
            text,
            device=f"dozen{number}",
            extra=["ifconfig-noexec", "route-noexec"],
        )
        client.start()
        clients.append(client)
    for client in clients:
        client.wait_for(STARTED, timeout=LIMIT)
        assert client.log.count(STARTED) == 1
        assert "SIGUSR1" not in client.log
    for client in clients:
        client.stop()
    server.stop()
