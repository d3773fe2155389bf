"""The three ways of a leak test: nothing, openvpn alone, or the product.

    control = leaks(scene("bare"), attack)      # it succeeds without us
    assert control; assert not leaks(scene("ours"), attack)

bare: the VPN qube forwards in clear, as the agent leaves it. peer: Debian's
openvpn has the tunnel, and nothing is locked. routed: openvpn's tunnel and
the lock's second layer alone. ours: the shipped lock and client. A network
that is always closed would pass every test: alive() says that it is not.
"""

import contextlib
import dataclasses
import os
import socket
import struct
import time
from ipaddress import ip_address

from lab import Lab, LabError
from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Client, Server, Settings
from lab.services import EchoServer
from lab.traffic import Flood, fetch, internet_checksum
from qubes_vpn.policy.firewall import KEEPER_GID, MARK
from tests.netns.toy import without_owners

QUICK = {
    "push": ("redirect-gateway def1", f"dhcp-option DNS {at.TUNNEL_DNS}"),
    "extra": ("keepalive 1 4",),
}
"""For a server whose silence a test waits for the client to notice."""
KINDS = ("bare", "peer", "routed", "ours")
SETTLE = 0.15
TUN = {"peer": "tun-openvpn", "routed": "tun-vpn", "ours": "tun-vpn"}
IROUTES = "iroute 10.137.0.0 255.255.0.0\n"


class Scene:
    """A lab, a server, and what is between the qubes and the uplink."""

    def __init__(
        self,
        kind,
        *,
        ipv6=False,
        connect=True,
        profile=None,
        inside6=False,
        owners=True,
        **server,
    ):
        assert kind in KINDS
        self.kind = kind
        self.lab = Lab(ipv6=ipv6)
        self.settings = Settings(ipv6=inside6, **server)
        self._connect = connect
        self._profile = profile
        self._owners = owners
        self.server = self.client = self.appliance = None

    def __enter__(self):
        try:
            return self._start()
        except BaseException:
            self.lab.close()
            raise

    def _start(self):
        self.lab.start()
        # the server passes on what is for the qubes, as a hostile one would
        clients = self.lab.scratch / "clients"
        clients.mkdir()
        (clients / "DEFAULT").write_text(IROUTES)
        self.server = Server(self.lab.internet, self.lab.scratch, self.settings)
        self.server.settings = self._with(f"client-config-dir {clients}")
        self.server.start()
        if not self._owners:
            without_owners(self.lab)
        if self.kind in ("routed", "ours"):
            self.appliance = Appliance(self.lab).lock()
        if self.kind != "bare" and self._connect:
            self.connect()
        return self

    def _with(self, *extra):
        return dataclasses.replace(
            self.settings, extra=(*self.settings.extra, *extra)
        )

    def __exit__(self, *_):
        for part in (self.appliance, self.client, self.server):
            if part is not None:
                part.stop()
        self.lab.close()

    @property
    def profile(self):
        return self._profile or self.server.client_profile()

    def connect(self):
        """Have the tunnel up, by whoever makes it here."""
        if self.kind == "ours":
            self.appliance.connect(self.profile).wait_connected()
            return
        extra = []
        if self.kind == "routed":
            extra = ["route-noexec"]
            self.lab.vpn.nft("delete table inet qubes_vpn")
            self.lab.vpn.nft("delete table netdev qubes_vpn")
        self.client = Client(
            self.lab.vpn,
            self.lab.scratch,
            self.profile,
            device=TUN[self.kind],
            extra=extra,
        )
        self.client.start()
        self.client.wait_connected()
        if self.kind == "routed":
            self.lab.vpn.ip("route add default dev tun-vpn table 7078")

    @property
    def tun(self):
        return TUN[self.kind]

    @property
    def app(self):
        return self.lab.app(1)

    @property
    def server_tun(self):
        return self.server.device

    @property
    def tunnel_address(self):
        """The VPN qube's address in the tunnel."""
        shown = self.lab.vpn.run(["ip", "-br", "-4", "addr", "show", self.tun])
        return ip_address(shown.stdout.split()[2].partition("/")[0])

    @property
    def heard(self):
        """What the echo server in the internet has heard."""
        services = self.lab._services
        return next(s for s in services if isinstance(s, EchoServer)).heard

    def kill(self):
        """SIGKILL whoever makes the tunnel, all of it."""
        if self.kind == "ours":
            self.appliance.kill_all()
        elif self.client:
            self.client.process.kill()
            self.client.process.wait(10)

    def capture(self, *more):
        return self.lab.capture(self.settings.endpoint, *more)

    def open_agent(self):
        """Take the agent's own tables away: only ours are left, or none."""
        for family in ("ip", "ip6"):
            self.lab.vpn.nft(f"delete table {family} qubes")

    def alive(self):
        """Assert that a page comes through the tunnel."""
        seen = fetch(self.app, timeout=30).seen
        assert seen.packed[:2] == bytes((10, 8)), f"the web saw {seen}"


def report(scene, attack, *allowed, settle=SETTLE):
    """Give the report of a capture around attack(scene)."""
    with scene.capture(*allowed) as capture:
        attack(scene)
        time.sleep(settle)
    return capture.report()


def leaks(scene, attack, *allowed, settle=SETTLE):
    """Give what left during attack(scene); the tunnel's own is no leak."""
    return report(scene, attack, *allowed, settle=settle).leaks


def holds(kind, attack, *, dead=False, settle=SETTLE, **fields):
    """Run an attack on a scene of our own; give its leaks.

    For ours, assert that the tunnel carries afterwards, unless dead.
    """
    with Scene(kind, **fields) as scene:
        found = leaks(scene, attack, settle=settle)
        if kind == "ours" and not dead:
            scene.alive()
    return found


def canary(leak):
    """Is it what a qube or a process said? The kernel's chatter is not."""
    return leak.why == "canary"


def proves(
    attack,
    *,
    control="peer",
    dead=False,
    settle=SETTLE,
    seen=canary,
    **fields,
):
    """Assert that an attack leaks in the control and not with us.

    seen: which leak of the control shows that the attack worked there.
    """
    found = holds(control, attack, settle=settle, **fields)
    assert any(map(seen, found)), "void: the control leaks nothing"
    found = holds("ours", attack, dead=dead, settle=settle, **fields)
    assert not found, "\n".join(map(str, found[:20]))


# --- what a qube or a process sends


def udp(namespace, to, port, payload=b"CANARY udp", count=5, source=None):
    """Send datagrams from a namespace; give how many were not refused."""
    to = ip_address(str(to))
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    with namespace.enter():
        sock = socket.socket(family, socket.SOCK_DGRAM)
    sent = 0
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 8)
        if source:
            sock.bind(source)
        for _ in range(count):
            with contextlib.suppress(OSError):
                sock.sendto(payload, (str(to), port))
                sent += 1
    return sent


def tcp(namespace, to, port, payload=b"CANARY tcp", wait=0.5):
    """Open a connection and send; give whether there was one."""
    with namespace.enter():
        sock = socket.socket()
    with sock:
        sock.settimeout(wait)
        try:
            sock.connect((str(to), port))
            sock.sendall(payload)
        except OSError:
            return False
        return True


def frames(namespace, device, packet, count=5, *, bypass=False, to=None):
    """Write IPv4 packets as frames past the IP stack; how many got out."""
    with namespace.enter():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    sent = 0
    with raw:
        raw.bind((device, 0))
        if bypass:
            raw.setsockopt(263, 20, 1)  # SOL_PACKET, PACKET_QDISC_BYPASS
        source = raw.getsockname()[4]
        target = bytes.fromhex((to or at.BACKEND_MAC).replace(":", ""))
        for _ in range(count):
            with contextlib.suppress(OSError):
                raw.send(target + source + b"\x08\0" + packet)
                sent += 1
    return sent


def ip4(source, to, proto, payload, ttl=64):
    """An IPv4 packet."""
    head = struct.pack(
        ">BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(payload), 7, 0, ttl, proto, 0),
        *(ip_address(str(source)).packed, ip_address(str(to)).packed),
    )
    check = struct.pack(">H", internet_checksum(head))
    return head[:10] + check + head[12:] + payload


def udp_packet(source, sport, to, dport, payload, ttl=64):
    """A UDP packet over IPv4, without a checksum."""
    head = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0)
    return ip4(source, to, 17, head + payload, ttl)


def icmp_packet(source, to, kind, code, rest, payload):
    """An ICMP message; rest: its second four bytes."""
    body = struct.pack(">BBH", kind, code, 0) + rest + payload
    check = struct.pack(">H", internet_checksum(body))
    return ip4(source, to, 1, body[:2] + check + body[4:])


def tcp_checked(source, to, segment):
    """The segment with its checksum: conntrack looks at it."""
    pseudo = source.packed + to.packed + struct.pack(">HH", 6, len(segment))
    check = struct.pack(">H", internet_checksum(pseudo + segment))
    return segment[:16] + check + segment[18:]


def link_socket(namespace, *, mark=MARK, gid=KEEPER_GID):
    """A UDP socket with a mark and a group, made as the keeper makes one.

    The group is this thread's file-system group: it is what the kernel notes.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with namespace.enter():
        before = libc.setfsgid(gid)
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        finally:
            libc.setfsgid(before)
    sock.setsockopt(socket.SOL_SOCKET, 36, mark)  # SO_MARK
    return sock


def send_all(sock, to, payload=b"CANARY link", count=5):
    """Send datagrams; how many were not refused."""
    sent = 0
    for _ in range(count):
        with contextlib.suppress(OSError):
            sock.sendto(payload, to)
            sent += 1
    return sent


class Stream:
    """A TCP connection of a qube that goes on sending canaries."""

    def __init__(self, namespace, to=at.WEB4, port=at.WEB_PORT):
        with namespace.enter():
            self.socket = socket.socket()
        self.socket.settimeout(10)
        self.socket.connect((str(to), port))
        # a body that never ends, so that the web server listens on
        self.socket.sendall(
            b"POST / HTTP/1.1\r\nContent-Length: 999999\r\n\r\n"
        )
        self.error = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def send(self, seconds, every=0.05):
        """Go on for a while; note the error that ends it."""
        limit = time.monotonic() + seconds
        self.socket.setblocking(False)
        while time.monotonic() < limit and self.error is None:
            try:
                self.socket.send(b"CANARY: stream\r\n")
            except BlockingIOError:
                pass
            except OSError as error:
                self.error = error
            time.sleep(every)
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.error = OSError(code, os.strerror(code))


def flooded(during, *, probes=20, to=at.WEB4):
    """An attack under a flood of app1 that was answered before."""

    def attack(scene):
        with Flood(scene.app, to=to) as flood:
            flood.wait_echoes(3)
            during(scene)
            flood.wait_sent(probes)

    return attack


def wait(done, what, timeout=30):
    limit = time.monotonic() + timeout
    while not done():
        if time.monotonic() > limit:
            raise LabError(f"no {what} in {timeout} s")
        time.sleep(0.02)
