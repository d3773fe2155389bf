"""The client engine against a real openvpn, with nothing but one socket.

No keeper, no tun device: what would enter the tunnel is a packet of ours.
"""

import select
import socket
import struct
import time
from pathlib import Path

from lab.namespace import Namespace
from lab.openvpn import Server
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.engine import effects
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.traffic import Traffic

LIMIT = 30.0


def no_file(path):
    return Path(path).read_bytes()


def icmp_echo(source, target, number, more=b""):
    body = struct.pack("!BBHHH", 8, 0, 0, 7, number) + more
    body = body[:2] + struct.pack("!H", _checksum(body)) + body[4:]
    head = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x45, 0, 20 + len(body), number, 0, 64, 1, 0),
        *(source.packed, target.packed),
    )
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + body


def _checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Live:
    """Runs an engine until something is true."""

    def __init__(self, namespace: Namespace, profile, **engine):
        self.profile = profile
        remote = profile.remotes[0]
        self.stream = remote.proto.startswith("tcp")
        kind = socket.SOCK_STREAM if self.stream else socket.SOCK_DGRAM
        family = socket.AF_INET6 if ":" in remote.host else socket.AF_INET
        with namespace.enter():
            self.link = socket.socket(family, kind)
        self.link.connect((remote.host, remote.port))
        self.buffer = b""
        self.traffic = Traffic()
        self.channel = DataChannel(self.traffic)
        self.engine = ClientEngine(
            profile,
            remote,
            entropy=lambda size: __import__("os").urandom(size),
            traffic=self.traffic,
            **engine,
        )
        self.effects = []
        self.received = []
        self.engine.start(self.now())
        self.drain()

    def close(self):
        self.link.close()

    @staticmethod
    def now():
        return Now(time.monotonic(), time.time())

    def send(self, datagram):
        if not datagram:
            return
        if self.stream:
            datagram = len(datagram).to_bytes(2) + datagram
        self.link.sendall(datagram)

    def drain(self):
        while (effect := self.engine.poll()) is not None:
            self.effects.append(effect)
            match effect:
                case effects.Send(datagram):
                    self.send(datagram)
                case effects.SendData(payload):
                    self.send_data(payload)
                case effects.InstallKeys(slot, keys):
                    self.channel.install(slot, keys)
                case effects.SwapKeys():
                    self.channel.swap()
                case effects.RemoveKeys(slot):
                    for each in (0, 1) if slot is None else (slot,):
                        self.channel.remove(each)

    def send_data(self, payload):
        self.send(self.channel.seal(payload, time.monotonic()))

    def of(self, kind):
        return [one for one in self.effects if isinstance(one, kind)]

    def run_until(self, done, limit=LIMIT):
        end = time.monotonic() + limit
        while not done(self):
            assert time.monotonic() < end, (
                self.engine.state,
                self.engine.drops,
            )
            wait = min(self.engine.deadline() - time.monotonic(), 0.5)
            ready, _, _ = select.select([self.link], [], [], max(wait, 0))
            if ready:
                for packet in self._read():
                    self._take(packet)
            if time.monotonic() >= self.engine.deadline():
                self.engine.expire(self.now())
            self.drain()
        return self

    def _read(self):
        try:
            data = self.link.recv(65536)
        except ConnectionRefusedError:
            return []  # an ICMP error ends nothing
        if not self.stream:
            return [data]
        self.buffer += data
        packets = []
        while len(self.buffer) >= 2:
            size = int.from_bytes(self.buffer[:2])
            if len(self.buffer) < 2 + size:
                break
            packets.append(self.buffer[2 : 2 + size])
            self.buffer = self.buffer[2 + size :]
        return packets

    def _take(self, packet):
        if packet[0] >> 3 in self.channel.data_kinds:
            inner = self.channel.open(packet, time.monotonic())
            if inner is not None:
                self.received.append(inner)
        else:
            self.engine.receive(packet, self.now())

    def ping_through(self, target, limit=LIMIT):
        """An ICMP echo through the tunnel, and its answer."""
        settings = self.of(effects.ApplySettings)[-1].settings
        before = len(self.received)
        echo = icmp_echo(settings.ifconfig4.ip, target, before + 1)
        self.send_data(echo)
        self.run_until(lambda live: len(live.received) > before, limit)
        return self.received[-1]


def profile_of(server: Server, **changes):
    text = server.client_profile(**changes)
    return parse_client_profile(text, "live.ovpn", no_file)
