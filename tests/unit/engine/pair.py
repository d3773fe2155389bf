"""Client and server engine, joined by a bad wire, under a virtual clock.

Everything that either engine sends goes through `Wire`, which loses,
delays, repeats and corrupts by a seed. Both have a real data channel; what
would be a tunnel device is a list.
"""

import functools
import heapq
import itertools
import random
import struct
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import IPv4Network, ip_address

from qubes_vpn.config.model import (
    ClientProfile,
    ControlWrapKey,
    Identity,
    Remote,
    ServerCheck,
)
from qubes_vpn.config.server_model import ServerProfile
from qubes_vpn.crypto.control_wrap import METADATA_USER, wrap_client_key
from qubes_vpn.crypto.pki import Algorithm, Usage, issue, make_authority
from qubes_vpn.engine import effects as do
from qubes_vpn.engine import server_effects as srv
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import Source
from qubes_vpn.engine.server import ServerEngine
from qubes_vpn.engine.states import Established
from qubes_vpn.engine.traffic import Traffic

EPOCH = 1_750_000_000.0
WRAPS = ("plain", "tls-auth", "tls-crypt", "tls-crypt-v2")
KEY = bytes(range(256))
SERVER_KEY = bytes(range(128))
HERE = Source(0, ip_address("192.0.2.7"), 40_000)
CLIENT_IP = ip_address("10.9.0.2")
SERVER_IP = ip_address("10.9.0.1")
DATA = (6, 9)


@functools.cache
def pki():
    then = datetime.fromtimestamp(EPOCH - 86400, UTC)
    ca = make_authority("ca", Algorithm.P256, then, 3650)
    made = [
        issue(ca, name, usage, Algorithm.P256, then, 3650)
        for name, usage in (
            ("server", Usage.SERVER),
            ("client", Usage.CLIENT),
        )
    ]
    return (ca, *made)


@functools.cache
def stranger():
    then = datetime.fromtimestamp(EPOCH - 86400, UTC)
    return make_authority("stranger", Algorithm.P256, then, 3650)


def profiles(wrap="tls-crypt", **both):
    """Profiles that fit each other; keywords are fields of both."""
    ca, server, client = pki()
    wkc = wrap_client_key(SERVER_KEY, KEY, bytes([METADATA_USER]))
    ours = {
        "plain": (ControlWrapKey(), ControlWrapKey()),
        "tls-auth": (
            ControlWrapKey("tls-auth", KEY, 1),
            ControlWrapKey("tls-auth", KEY, 0),
        ),
        "tls-crypt": (
            ControlWrapKey("tls-crypt", KEY),
            ControlWrapKey("tls-crypt", KEY),
        ),
        "tls-crypt-v2": (
            ControlWrapKey("tls-crypt-v2", KEY, wkc=wkc),
            ControlWrapKey(),
        ),
    }[wrap]
    theirs = ClientProfile(
        remotes=(Remote("192.0.2.1"),),
        server_check=ServerCheck(ca=ca.certificate),
        identity=Identity(client.certificate, b"", client.key),
        control_wrap=ours[0],
        **both,
    )
    return theirs, ServerProfile(
        identity=Identity(server.certificate, b"", server.key),
        client_check=ServerCheck(ca=ca.certificate),
        control_wrap=ours[1],
        tls_crypt_v2=SERVER_KEY if wrap == "tls-crypt-v2" else b"",
        network4=IPv4Network("10.9.0.0/24"),
        keepalive=(5, 40),
        ping=5,
        ping_restart=80,
        **both,
    )


@dataclass(frozen=True)
class Faults:
    """Shares of packets, and the longest delay in seconds."""

    loss: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.02


class Wire:
    """Carries datagrams both ways; `to_server` is the direction."""

    def __init__(self, faults, dice):
        self.faults = faults
        self.dice = dice
        self.queue = []
        self.count = itertools.count()
        self.cut = False
        self.seen = []

    def send(self, now, datagram, *, to_server):
        self.seen.append((now, to_server, datagram))
        faults, dice = self.faults, self.dice
        if self.cut or dice.random() < faults.loss:
            return
        copies = 2 if dice.random() < faults.duplicate else 1
        for _ in range(copies):
            if dice.random() < faults.corrupt:
                at = dice.randrange(len(datagram))
                flipped = datagram[at] ^ (1 << dice.randrange(8))
                datagram = datagram[:at] + bytes([flipped]) + datagram[at + 1 :]
            when = now + 0.001 + dice.random() * faults.delay
            item = (when, next(self.count), to_server, datagram)
            heapq.heappush(self.queue, item)

    def next_time(self):
        return self.queue[0][0] if self.queue else float("inf")


def packet(source, target, number):
    body = struct.pack("!I", number)
    size = 20 + len(body)
    head = struct.pack("!BBHHHBBH", 0x45, 0, size, 1, 0, 64, 17, 0)
    return head + source.packed + target.packed + body


class Law:
    """Forwarding only while keys are installed: checked at every effect."""

    def __init__(self):
        self.slots = [False, False]
        self.forwarding = False

    def apply(self, effect):
        match effect:
            case do.InstallKeys(slot, _):
                self.slots[slot] = True
            case do.SwapKeys():
                self.slots.reverse()
            case do.RemoveKeys(slot):
                for each in (0, 1) if slot is None else (slot,):
                    self.slots[each] = False
            case do.OpenForwarding():
                self.forwarding = True
            case do.CloseForwarding():
                self.forwarding = False
        assert self.slots[0] or not self.forwarding


def perform(channel, effect):
    match effect:
        case do.InstallKeys(slot, keys):
            channel.install(slot, keys)
        case do.SwapKeys():
            channel.swap()
        case do.RemoveKeys(slot):
            for each in (0, 1) if slot is None else (slot,):
                channel.remove(each)


class Pair:
    """A world: run it with `until`."""

    def __init__(self, client, server, *, seed=0, faults=None, **engine):
        self.dice = random.Random(seed)
        self.wire = Wire(faults or Faults(), self.dice)
        self.profile = client
        self.time = 0.0
        self.engine_options = engine
        self.server = ServerEngine(server, entropy=self.dice.randbytes)
        self.server_channels = {}
        self.decide = lambda asked: srv.Decision(allowed=True)
        self.asked = []
        self.effects = []
        self.removed = []
        self.at_server = []
        self.at_client = []
        self.sent = itertools.count(1)
        self.restarts = 0
        self.connect()

    @property
    def now(self):
        return Now(self.time, EPOCH + self.time)

    def connect(self, **engine):
        self.law = Law()
        self.traffic = Traffic()
        self.channel = DataChannel(self.traffic)
        self.client = ClientEngine(
            self.profile,
            self.profile.remotes[0],
            entropy=self.dice.randbytes,
            traffic=self.traffic,
            **{**self.engine_options, **engine},
        )
        self.client.start(self.now)
        self.drain()

    # --- effects

    def drain(self):
        self._drain_server()
        while (effect := self.client.poll()) is not None:
            self.law.apply(effect)
            self.effects.append(effect)
            perform(self.channel, effect)
            match effect:
                case do.Send(datagram):
                    self.wire.send(self.time, datagram, to_server=True)
                case do.SendData(payload):
                    self.from_client(payload)

    def _drain_server(self):
        while (effect := self.server.poll()) is not None:
            match effect:
                case srv.SendTo(_, datagram):
                    self.wire.send(self.time, datagram, to_server=False)
                case srv.ForClient(client, inner):
                    self._for_client(client, inner)

    def _for_client(self, client, effect):
        match effect:
            case srv.Authenticate():
                self.asked.append(effect)
                decision = self.decide(effect)
                if decision is not None:
                    number = effect.number
                    self.server.decide(client, number, decision, self.now)
            case srv.Removed(reason):
                self.removed.append(reason)
                self.server_channels.pop(client, None)
            case do.SendData(payload):
                self.from_server(client, payload)
            case do.InstallKeys(0):
                traffic = self.server.session(client).traffic
                self.server_channels[client] = DataChannel(traffic)
                perform(self.server_channels[client], effect)
            case _ if client in self.server_channels:
                perform(self.server_channels[client], effect)

    # --- data

    def from_client(self, payload):
        datagram = self.channel.seal(payload, self.time)
        if datagram:
            self.wire.send(self.time, datagram, to_server=True)

    def from_server(self, client, payload):
        channel = self.server_channels.get(client)
        if channel is None:
            return
        datagram = channel.seal(payload, self.time)
        if datagram:
            self.wire.send(self.time, datagram, to_server=False)

    def chat(self):
        """One packet from each side that has a key."""
        number = next(self.sent)
        if self.law.forwarding:
            self.from_client(packet(CLIENT_IP, SERVER_IP, number))
        for client in list(self.server_channels):
            self.from_server(client, packet(SERVER_IP, CLIENT_IP, number))

    # --- time

    def until(self, done, limit=600.0, every=0.5):
        """Run until done(self); a drought fails. Chats every so often."""
        end = self.time + limit
        chat_at = self.time
        while not done(self):
            assert self.time < end, self.drought()
            times = (
                self.wire.next_time(),
                self.client.deadline(),
                self.server.deadline(),
                chat_at,
            )
            self.time = max(self.time, min(*times, end))
            if self.time >= chat_at:
                self.chat()
                chat_at += every
            self._deliver()
            if self.client.deadline() <= self.time:
                self.client.expire(self.now)
            if self.server.deadline() <= self.time:
                self.server.expire(self.now)
            self.drain()
            self._restart()
        return self

    def _restart(self):
        ended = self.effects[-1] if self.effects else None
        if isinstance(ended, do.Ended) and ended.retry:
            self.restarts += 1
            self.connect()

    def _deliver(self):
        queue = self.wire.queue
        while queue and queue[0][0] <= self.time:
            _, _, to_server, datagram = heapq.heappop(queue)
            if to_server:
                self._at_server(datagram)
            else:
                self._at_client(datagram)
            self.drain()

    def _at_server(self, datagram):
        if datagram[0] >> 3 not in DATA:
            self.server.receive(datagram, HERE, self.now)
            return
        for channel in self.server_channels.values():
            inner = channel.open(datagram, self.time)
            if inner is not None:
                self.at_server.append(inner)
                return

    def _at_client(self, datagram):
        if datagram[0] >> 3 not in DATA:
            self.client.receive(datagram, self.now)
            return
        inner = self.channel.open(datagram, self.time)
        if inner is not None:
            self.at_client.append(inner)

    # --- what tests ask

    def drought(self):
        return (
            f"at {self.time}: {self.client.state}, drops"
            f" {self.client.drops}, server {self.server.drops}"
            f" removed {self.removed} restarts {self.restarts}"
        )

    @property
    def established(self):
        return isinstance(self.client.state, Established)

    def of(self, kind):
        return [one for one in self.effects if isinstance(one, kind)]


def connected(pair):
    """Traffic flows both ways."""
    return pair.established and pair.at_client and pair.at_server


def pair(wrap="tls-crypt", *, seed=0, faults=None, client=None, **both):
    """A world with profiles that fit; client: fields of its alone."""
    ours, theirs = profiles(wrap, **both)
    return Pair(
        replace(ours, **(client or {})), theirs, seed=seed, faults=faults
    )
