"""A tunnel that only proves the lock: real sockets and devices, XOR for keys.

The keeper and its rules are the shipped ones; what stands in for OpenVPN here
is the least that carries packets.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from ipaddress import ip_address, ip_interface
from pathlib import Path

from lab import Endpoint as Allowed
from lab import addresses as at
from lab.background import Background
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.policy.phase import Endpoint, Transport
from qubes_vpn.system import tun

SCRIPT = "qubes_vpn/lockdown/lockdown.sh"
ALLOWED = Allowed(at.SERVER4, "udp", at.VPN_PORT)
ENDPOINT = Endpoint(at.SERVER4, Transport.UDP, at.VPN_PORT)
ADDRESS = ip_interface("10.8.0.2/24")
ADDRESS6 = ip_interface("fd00:8::2/64")
TIMEOUT = 30
_XOR = bytes(byte ^ 0x5A for byte in range(256))


def lock(lab, *, uplink="eth0"):
    lab.vpn.run([SCRIPT, "apply", "--uplink", uplink])


HOLD = """
import time
from qubes_vpn.errors import VpnError
from qubes_vpn.system.nft import Nft
nft = Nft()
try:
    nft.load("table inet qubes_vpn_probe { flags owner; }")
except VpnError:
    pass  # an older nft
print(flush=True)
time.sleep(600)
"""


def without_owners(lab):
    """Have a keeper find here what it finds where no table has an owner.

    The name that it tries that with is taken, whatever the nft. Without it
    nobody could change the filter, and there was nothing to put back.
    """
    holder = lab.vpn.popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE)
    assert holder.stdout.readline()


def wait(done, what):
    limit = time.monotonic() + TIMEOUT
    while not done():
        assert time.monotonic() < limit, what
        time.sleep(0.01)


class Pump(Background):
    """Moves packets both ways between a tun and a socket until stopped."""

    def __init__(self, device, link, send):
        super().__init__()
        self._device, self._link, self._send = device, link, send
        self.peer = None

    def _run(self):
        while not self._stop.is_set():
            with contextlib.suppress(OSError):
                self._once()

    def _once(self):
        ready, _, _ = select.select([self._device, self._link], [], [], 0.05)
        if self._device in ready:
            self._send(os.read(self._device, 65535).translate(_XOR))
        if self._link in ready:
            data, self.peer = self._link.recvfrom(65535)
            os.write(self._device, data.translate(_XOR))

    def stop(self):
        super().stop()
        self._link.close()


class Server:
    """The far end, in the lab's internet."""

    def __init__(self, lab):
        with lab.internet.enter():
            self.link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self.device = os.open(tun.PATH, os.O_RDWR | os.O_CLOEXEC)
        self.link.bind((str(at.SERVER4), at.VPN_PORT))
        tun.attach(self.device, "toy0", vnet_hdr=False)
        lab.internet.ip("""
            link set toy0 up
            addr add 10.8.0.1/24 dev toy0
            addr add fd00:8::1/64 dev toy0 nodad
        """)
        self.pump = Pump(self.device, self.link, self._send)
        self.pump.start()

    def _send(self, data):
        if self.pump.peer:
            self.link.sendto(data, self.pump.peer)

    def close(self):
        self.pump.stop()
        os.close(self.device)


# The shipped keeper with another waiting time than its minute.
QUIETER = """
import sys
from qubes_vpn.keeper import __main__, guardian
guardian.QUIET_S = {}
sys.exit(__main__.main(sys.argv[1:]))  # qubes_vpn.keeper
"""


class Rig:
    """A keeper in the VPN qube; agent and engine are this process."""

    def __init__(
        self, lab, *words, server=True, quiet=0, python=(sys.executable,)
    ):
        self.lab = lab
        self.notices = []
        self.server = Server(lab) if server else None
        ours, theirs = pair()
        start = ["-m", "qubes_vpn.keeper"]
        if quiet:
            start = ["-c", QUIETER.format(quiet)]
        self.process = lab.vpn.popen(
            [
                *python,
                *start,
                *("--agent-fd", str(theirs.fileno()), *words),
            ],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        self.agent = KeeperClient(ours, self.notices.append)
        self.engine = self.pump = None
        self.device = self.link = -1

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill_engine()
        self.agent.close()
        self.process.wait(TIMEOUT)
        if self.server:
            self.server.close()

    @property
    def status(self):
        return self.agent.request(messages.GetStatus())[0]

    def adopt(self, *endpoints):
        """Give the keeper the endpoints and an engine."""
        self.agent.request(
            messages.SetEndpoints(endpoints or (ENDPOINT,)),
            timeout=TIMEOUT,  # it may still be starting
        )
        ours, theirs = pair()
        self.agent.request(messages.AdoptEngine(), (theirs.fileno(),))
        theirs.close()
        self.engine = KeeperClient(ours)
        return self

    def dial(self, index=0):
        """Open the tun and the link, and configure."""
        _, (self.device,) = self.engine.request(messages.OpenTun())
        _, (self.link,) = self.engine.request(messages.OpenLink(index))
        self.engine.request(self.configuration())
        return self

    def configuration(self, *addresses):
        return messages.Configure(
            addresses or (ADDRESS, ADDRESS6),
            1400,
            (messages.Route("0.0.0.0/0"),),
            (at.TUNNEL_DNS,),
            ("vpn.example",),
        )

    def forward(self, **families):
        self.engine.request(messages.OpenForwarding(1360, 1340, **families))
        return self

    def run_pump(self):
        link = socket.socket(fileno=os.dup(self.link))
        link.setblocking(False)
        # before a packet of a qube may tell the server where we are
        before = self.server and self.server.pump.peer
        self.pump = Pump(self.device, link, link.send).start()
        if self.server:  # which learns by it where we are
            link.send(b"hello")
            wait(lambda: self.server.pump.peer != before, "the new peer")
        return self

    def connect(self, **families):
        """Everything, to packets of qubes flowing."""
        return self.adopt().dial().forward(**families).run_pump()

    def kill_engine(self):
        """What the kernel does when the engine is killed."""
        if self.engine is None:
            return
        if self.pump:
            self.pump.stop()
        for descriptor in (self.device, self.link):
            if descriptor >= 0:
                os.close(descriptor)
        self.pump = None
        self.device = self.link = -1
        self.engine.close()
        self.engine = None

    def wait_notice(self, kind):
        """Take notices until one of this kind is among them."""
        while not any(isinstance(each, kind) for each in self.notices):
            assert select.select([self.agent], [], [], TIMEOUT)[0], kind
            self.agent.receive()
        return next(each for each in self.notices if isinstance(each, kind))

    def keepers(self):
        """The process ids of keepers in the VPN qube."""
        return [
            pid
            for pid in self.lab.vpn.pids()
            if b"qubes_vpn.keeper" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    def nft(self, *words):
        return self.lab.vpn.run(["nft", *words]).stdout


def pair():
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def silent(lab, flood, probes=20):
    """Have a flood go on for a while, and give what left meanwhile."""
    with lab.capture(ALLOWED) as capture:
        flood.wait_sent(probes)
        time.sleep(0.1)
    return capture.report()


TUNNEL_ADDRESS = ip_address("10.8.0.2")
