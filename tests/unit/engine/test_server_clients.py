"""One server engine and many clients' engines, over a perfect wire."""

import functools
import itertools
import random
import tracemalloc
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

import pytest
from cryptography import x509

from qubes_vpn.config.model import Credentials, Identity, ServerCheck
from qubes_vpn.config.server_model import ClientConfig, TokenOptions
from qubes_vpn.crypto.pki import (
    Algorithm,
    Revoked,
    Usage,
    issue,
    make_authority,
    make_crl,
)
from qubes_vpn.crypto.tls import TlsContext
from qubes_vpn.engine import dial, settle
from qubes_vpn.engine import effects as do
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import Source
from qubes_vpn.engine.peer_info import PlaneFeatures, peer_info
from qubes_vpn.engine.server import HALF_OPEN_PER_ADDRESS, ServerEngine
from qubes_vpn.engine.server_effects import (
    Admitted,
    Authenticate,
    Decision,
    ForClient,
    Removed,
    SendTo,
)
from qubes_vpn.engine.server_session import ServerSession
from qubes_vpn.engine.states import Established
from qubes_vpn.engine.traffic import Traffic
from tests.unit.engine.pair import EPOCH, pki, profiles

THEN = datetime.fromtimestamp(EPOCH, UTC)
YES = Decision(allowed=True)
_ports = itertools.count(20_000)


@functools.cache
def identity(name, usage=Usage.CLIENT, days=3650, began=THEN):
    made = issue(pki()[0], name, usage, Algorithm.P256, began, days)
    return Identity(made.certificate, b"", made.key), made


class Client:
    def __init__(self, world, profile, port=None):
        self.source = Source(0, ip_address("192.0.2.7"), port or next(_ports))
        self.world = world
        self.traffic = Traffic()
        self.ended = None
        self.settings = None
        self.datagrams = []
        self.engine = ClientEngine(
            profile,
            profile.remotes[0],
            entropy=world.dice.randbytes,
            traffic=self.traffic,
            credentials=profile.auth_user_pass,
            features=PlaneFeatures(epoch=True),
        )

    @property
    def connected(self):
        return isinstance(self.engine.state, Established)


class World:
    def __init__(self, wrap="tls-crypt", **server):
        self.dice = random.Random(7)
        self.profile, theirs = profiles(wrap)
        # no data channel here, so nobody would hear the pings
        silent = {"keepalive": (0, 0), "ping": 0, "ping_restart": 0}
        fields = {**silent, "connect_freq_initial": (0, 0), **server}
        theirs = replace(theirs, **fields)
        self.server = ServerEngine(theirs, entropy=self.dice.randbytes)
        self.time = 1000.0
        self.clients = {}
        self.log = []
        self.decide = lambda asked: YES

    def now(self):
        return Now(self.time, EPOCH + self.time)

    def client(self, name="client", port=None, **fields):
        who = fields.pop("identity", None) or identity(name)[0]
        fields = {"ping_restart": 0, **fields}
        profile = replace(self.profile, identity=who, **fields)
        client = Client(self, profile, port)
        self.clients[client.source] = client
        client.engine.start(self.now())
        return client

    def drain(self):
        moved = True
        while moved:
            moved = False
            for client in list(self.clients.values()):
                while effect := client.engine.poll():
                    moved = True
                    self._from_client(client, effect)
            while effect := self.server.poll():
                moved = True
                self._from_server(effect)

    def _from_client(self, client, effect):
        match effect:
            case do.Send(datagram):
                client.datagrams.append(datagram)
                self.server.receive(datagram, client.source, self.now())
            case do.ApplySettings(settings):
                client.settings = settings
            case do.Ended():
                client.ended = effect

    def _from_server(self, effect):
        self.log.append(effect)
        match effect:
            case SendTo(source, datagram):
                client = self.clients.get(source)
                if client:
                    client.engine.receive(datagram, self.now())
            case ForClient(number, Authenticate() as asked):
                decision = self.decide(asked)
                if decision:
                    self.server.decide(
                        number, asked.number, decision, self.now()
                    )

    def run(self, seconds=0.0):
        self.drain()
        end = self.time + seconds
        while True:
            due = min(
                self.server.deadline(),
                *(c.engine.deadline() for c in self.clients.values()),
            )
            if due > end:
                break
            self.time = max(self.time, due)
            self.server.expire(self.now())
            assert self.server.deadline() > self.time
            for client in self.clients.values():
                if client.engine.deadline() <= self.time:
                    client.engine.expire(self.now())
            self.drain()
        self.time = end

    def effects(self, kind):
        return [
            e.effect
            for e in self.log
            if isinstance(e, ForClient) and isinstance(e.effect, kind)
        ]


def test_clients_get_addresses_of_their_own():
    world = World()
    clients = [world.client(f"c{n}") for n in range(5)]
    world.run()
    addresses = [str(c.settings.ifconfig4) for c in clients]
    assert addresses == [f"10.9.0.{n}/24" for n in range(2, 7)]
    assert [c.settings.peer_id for c in clients] == list(range(5))
    assert len({a.lease.address4 for a in world.effects(Admitted)}) == 5


REFUSED = {
    "expired": (identity, {"name": "old", "days": 1, "began": THEN - timedelta(days=30)}),
    "not-yet": (identity, {"name": "new", "began": THEN + timedelta(days=30)}),
    "a server's": (identity, {"name": "srv", "usage": Usage.SERVER}),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_certificate_that_is_not_good_gets_nothing(case):
    make, words = REFUSED[case]
    world = World(client_check=ServerCheck(ca=pki()[0].certificate, eku="TLS Web Client Authentication"))  # fmt: skip
    client = world.client(identity=make(**words)[0])
    world.run(1)
    assert not client.connected
    assert not world.effects(Authenticate)
    assert not world.effects(Admitted)
    assert len(world.effects(Removed)) == 1
    assert len(world.server) == 0


def test_a_foreign_authoritys_client_gets_nothing():
    other = make_authority("ca", Algorithm.P256, THEN, 10)
    forged = issue(other, "client", Usage.CLIENT, Algorithm.P256, THEN, 10)
    world = World()
    world.client(identity=Identity(forged.certificate, b"", forged.key))
    world.run(1)
    assert not world.effects(Authenticate)
    assert len(world.server) == 0


def test_a_client_without_a_certificate_gets_nothing():
    world = World()
    world.client(identity=Identity())
    world.run(1)
    assert not world.effects(Authenticate)


def crl_of(*issued):
    revoked = [Revoked(made.serial, THEN) for made in issued]
    return make_crl(pki()[0], revoked, 1, THEN, 30)


def test_a_revoked_client_gets_nothing_and_the_others_do():
    ca = pki()[0].certificate
    world = World(
        client_check=ServerCheck(ca=ca, crl=crl_of(identity("eve")[1]))
    )
    eve, bob = world.client("eve"), world.client("bob")
    world.run(1)
    assert bob.connected
    assert not eve.connected
    assert [a.common_name for a in world.effects(Authenticate)] == ["bob"]


def serial_of(name):
    certificate = identity(name)[1].certificate
    return str(x509.load_pem_x509_certificate(certificate).serial_number)


@pytest.mark.parametrize("folder", [False, True])
def test_who_is_revoked_while_connected_is_out_at_the_next_key(folder):
    ca = pki()[0].certificate
    check = ServerCheck(ca=ca, crl=b"" if folder else crl_of())
    world = World(client_check=check, reneg_sec=60)
    eve = world.client("eve")
    world.run(1)
    assert eve.connected
    if folder:
        world.server.reload_crl(b"", frozenset({serial_of("eve")}))
    else:
        world.server.reload_crl(crl_of(identity("eve")[1]))
    world.run(70)
    (removed,) = world.effects(Removed)
    assert removed.reason == "certificate-revoked"
    assert len(world.server) == 0


def test_a_disabled_client_is_told_and_leaves_nothing():
    world = World()
    world.decide = lambda asked: Decision(allowed=False, reason="not you")
    client = world.client()
    world.run(10)
    assert client.ended.reason == "auth-failed"
    assert len(world.server) == 0
    (removed,) = world.effects(Removed)
    assert (removed.reason, removed.detail) == ("auth-failed", "not you")


def test_one_name_has_one_connection_unless_told_otherwise():
    world = World()
    world.client("alice")
    world.run()
    world.client("alice")
    world.run()
    assert [r.reason for r in world.effects(Removed)] == ["replaced"]
    assert len(world.server) == 1
    first, second = world.effects(Admitted)
    assert first.lease == second.lease, "it comes back to its address"
    many = World(duplicate_cn=True)
    for _ in range(3):
        many.client("alice")
    many.run()
    assert len(many.server) == 3
    assert len({a.lease.address4 for a in many.effects(Admitted)}) == 3


def test_max_clients_is_a_temporary_reason():
    world = World(max_clients=2)
    clients = [world.client(f"c{n}") for n in range(3)]
    world.run(1)
    assert [c.connected for c in clients] == [True, True, False]
    assert clients[2].ended.retry
    assert clients[2].ended.backoff >= 30


def test_a_full_pool_is_a_temporary_reason():
    world = World(network4=IPv4Network("10.9.0.0/30"))
    first, second = world.client("a"), world.client("b")
    world.run(1)
    assert first.connected
    assert not second.connected
    assert second.ended.retry


def test_what_another_client_sent_is_nothing_from_elsewhere():
    """Two clients cannot take each other's session."""
    world = World(wrap="plain")
    alice, eve = world.client("alice"), world.client("eve")
    world.run()
    number = world.effects(Admitted)[0]
    assert number.common_name == "alice"
    before = world.server.session(0).state
    for datagram in alice.datagrams:
        world.server.receive(datagram, eve.source, world.now())
    world.drain()
    assert world.server.session(0).state is before
    assert world.server.session(0).source == alice.source
    assert not world.effects(Removed)
    assert len(world.server) == 2


def test_a_spoofed_reset_disturbs_nobody():
    world = World(wrap="plain")
    alice = world.client("alice")
    world.run()
    reset = bytearray(alice.datagrams[0])
    for n in range(60):
        reset[1:9] = bytes([n + 1]) * 8
        world.server.receive(bytes(reset), alice.source, world.now())
        world.run(1)
    assert alice.connected
    assert len(world.server) == 1


def test_a_client_that_restarts_on_the_same_port_replaces_itself():
    world = World()
    first = world.client("alice")
    world.run()
    second = world.client("alice", port=first.source.port)
    world.run()
    assert second.connected
    assert len(world.server) == 1
    assert [r.reason for r in world.effects(Removed)] == ["replaced"]


def test_only_its_owner_floats_to_an_address_that_is_taken():
    world = World()
    alice, eve = world.client("alice"), world.client("eve")
    world.run()
    assert not world.server.float_to(1, alice.source)
    assert world.server.session(0).source == alice.source
    free = replace(eve.source, port=50_000)
    assert world.server.float_to(1, free)
    assert world.server.session(1).source == free


def test_control_packets_follow_a_client_that_floated():
    world = World()
    alice = world.client("alice", reneg_sec=60)
    world.run()
    moved = replace(alice.source, port=50_001)
    del world.clients[alice.source]
    alice.source = moved
    world.clients[moved] = alice
    assert world.server.float_to(0, moved)
    world.run(70)
    assert alice.connected
    assert world.effects(do.SwapKeys), "it renegotiated from there"


def test_half_open_handshakes_are_bounded_and_end():
    """Who proves an address and stops there holds a bounded number."""
    world = World(wrap="plain", hand_window=30)
    decisions = world.decide
    world.decide = None
    for _ in range(HALF_OPEN_PER_ADDRESS + 50):
        client = Client(world, world.profile)
        world.clients[client.source] = client
        client.engine.start(world.now())
        effects = list(iter(client.engine.poll, None))
        (reset,) = (e.datagram for e in effects if isinstance(e, do.Send))
        world.server.receive(reset, client.source, world.now())
        answer = world.server.poll()
        client.engine.receive(answer.datagram, world.now())
        for effect in iter(client.engine.poll, None):
            if isinstance(effect, do.Send):
                # the ClientHello's first packet, and never more
                world.server.receive(
                    effect.datagram, client.source, world.now()
                )
                break
        for _ in iter(world.server.poll, None):
            pass
    assert len(world.server) == HALF_OPEN_PER_ADDRESS
    assert world.server.drops["too-many-half-open"] == 50
    world.clients.clear()
    world.decide = decisions
    world.time += 31
    world.server.expire(world.now())
    assert len(world.server) == 0
    late = world.client("late")
    world.run(1)
    assert late.connected


def test_a_client_config_is_the_clients():
    world = World()
    own = ClientConfig(
        ifconfig4=(IPv4Address("10.9.0.77"), "255.255.255.0"),
        push=("route 10.50.0.0 255.255.0.0",),
    )
    world.decide = lambda asked: Decision(allowed=True, config=own)
    client = world.client()
    world.run()
    assert str(client.settings.ifconfig4) == "10.9.0.77/24"
    assert "10.50.0.0/16" in [str(r.network) for r in client.settings.routes]


def test_silence_ends_a_client():
    world = World(ping=5, ping_restart=20)
    client = world.client()
    world.run()
    del world.clients[client.source]
    world.time += 21
    world.server.expire(world.now())
    world.drain()
    assert [r.reason for r in world.effects(Removed)] == ["ping-restart"]


@pytest.mark.parametrize("option", ["inactive", "session_timeout"])
def test_a_time_limit_ends_a_client(option):
    world = World(**{option: 50})
    world.client()
    world.run(49)
    assert not world.effects(Removed)
    world.run(10)
    reason = option.replace("_", "-")
    assert [r.reason for r in world.effects(Removed)] == [reason]


def test_a_token_is_taken_for_the_password_until_it_is_old():
    world = World(
        password_file="x",
        auth_gen_token=TokenOptions(renewal=100, secret=bytes(range(128))),
        reneg_sec=60,
    )
    client = world.client(auth_user_pass=Credentials("alice", "secret"))
    world.run(200)
    first, *later = world.effects(Authenticate)
    assert (first.password, first.trusted) == ("secret", False)
    assert len(later) >= 2
    assert all(asked.trusted for asked in later)
    assert len({asked.password for asked in later}) == len(later), "renewed"
    assert client.connected


def test_our_client_hears_of_resolvers():
    world = World(push=("dns server 1 address 10.9.0.1",))
    client = world.client()
    world.run()
    assert client.settings.dns == (ip_address("10.9.0.1"),)


def called_bob(**server):
    """A world whose client alice, with the user name alice, is called bob."""
    secret = bytes(range(128))
    world = World(
        password_file="x",
        auth_gen_token=TokenOptions(renewal=100, secret=secret),
        reneg_sec=60,
        **server,
    )
    decision = Decision(allowed=True, config=ClientConfig(username="bob"))
    world.decide = lambda asked: decision
    login = Credentials("alice", "secret")
    return world, world.client("alice", auth_user_pass=login)


def test_a_client_is_called_what_its_file_says():
    world, client = called_bob()
    world.run(200)
    first, *later = world.effects(Authenticate)
    assert (first.username, first.trusted) == ("alice", False)
    assert len(later) >= 2
    assert all(asked.trusted for asked in later)
    assert {asked.common_name for asked in later} == {"alice"}
    (admitted,) = world.effects(Admitted)
    assert (admitted.common_name, admitted.username) == ("alice", "bob")
    assert client.engine.token[0] == "bob"
    # the token is bob's, who comes again with it
    for name, comes in (("bob", True), ("alice", False)):
        again = world.client("alice", auth_user_pass=Credentials())
        token = Credentials(name, client.engine.token[1])
        again = world.client("alice", auth_user_pass=token)
        world.run(6)
        assert again.connected is comes


@pytest.mark.parametrize(
    "server",
    [{"username_as_common_name": True}, {"verify_client_cert": "none"}],
)
def test_no_other_name_where_the_name_chooses_the_file(server):
    world, client = called_bob(**server)
    if "verify_client_cert" in server:
        world.clients.clear()
        nobody = Identity(b"", b"", b"")
        login = Credentials("alice", "secret")
        client = world.client(identity=nobody, auth_user_pass=login)
    world.run(6)
    assert not client.connected
    reasons = {removed.reason for removed in world.effects(Removed)}
    assert "override-username" in reasons


def test_stop_sends_everybody_away_and_answers_nobody():
    world = World()
    clients = [world.client(f"c{n}") for n in range(3)]
    world.run()
    world.server.stop(world.now())
    world.run(6)
    assert {c.ended.reason for c in clients} == {"server-restart"}
    assert len(world.server) == 0
    late = world.client("late")
    world.run(1)
    assert not late.connected
    assert world.server.drops["stopping"]


def test_every_packet_in_every_order_leaves_the_server_alive():
    """Replay, truncate and damage what a client said, in disorder."""
    world = World(wrap="plain")
    alice = world.client("alice")
    world.run()
    said = list(alice.datagrams)
    for _ in range(3000):
        datagram = bytearray(world.dice.choice(said))
        del datagram[world.dice.randrange(len(datagram) + 1) :]
        for _ in range(world.dice.randrange(3)):
            if datagram:
                at = world.dice.randrange(len(datagram))
                datagram[at] = world.dice.randrange(256)
        world.server.receive(bytes(datagram), alice.source, world.now())
        for _ in iter(world.server.poll, None):
            pass
    bob = world.client("bob")
    world.run(1)
    assert bob.connected


@pytest.mark.slow
def test_forged_first_packets_take_no_memory():
    world = World(wrap="plain")
    world.server = ServerEngine(
        replace(world.server.profile, connect_freq_initial=(100, 10)),
        entropy=world.dice.randbytes,
    )
    received = sent = 0

    def flood(count):
        nonlocal received, sent
        for n in range(count):
            datagram = b"\x38" + world.dice.randbytes(8) + bytes(5)
            address = ip_address(world.dice.randbytes(4))
            source = Source(0, address, 1024 + n % 60_000)
            received += len(datagram)
            world.server.receive(datagram, source, world.now())
            for effect in iter(world.server.poll, None):
                sent += len(effect.datagram)

    flood(2000)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    flood(20_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 50_000
    assert 0 < sent < received
    assert len(world.server) == 0
    for _ in range(30):
        flood(100)
        client = world.client("real")
        world.run(0)
        if client.connected:
            break
    assert client.connected


def test_sessions_hold_no_secret_in_their_repr():
    world = World()
    world.client("alice")
    world.run()
    session: ServerSession = world.server.session(0)
    for value in (session.state, *world.log):
        text = repr(value)
        assert "random" not in text
        assert "password=" not in text


def test_a_client_that_can_gets_epochs_and_one_that_cannot_does_not():
    world = World()
    world.client("new")
    world.run()
    keys = [e.keys for e in world.effects(do.InstallKeys)]
    assert [key.epoch for key in keys] == [True]
    old = World(data_ciphers=("AES-256-CBC",))
    old.client("old", data_ciphers=("AES-256-CBC",))
    old.run()
    assert [e.keys.epoch for e in old.effects(do.InstallKeys)] == [False]


def test_a_renegotiation_cannot_change_who_it_is():
    world = World(reneg_sec=60)
    alice = world.client("alice")
    world.run()
    eve = replace(world.profile, identity=identity("eve")[0])
    alice.engine._dial._context = TlsContext(settle.tls_settings(eve, None))
    world.run(70)
    (removed,) = world.effects(Removed)
    assert removed.reason == "identity-changed"
    assert len(world.effects(Authenticate)) == 1


def test_who_is_no_longer_welcome_is_out_at_the_next_key():
    world = World(reneg_sec=60)
    client = world.client("alice")
    world.run()
    world.decide = lambda asked: Decision(allowed=False)
    world.run(70)
    assert [r.reason for r in world.effects(Removed)] == ["auth-failed"]
    assert client.ended.reason == "auth-failed"


def test_connect_freq_limits_new_sessions_and_not_for_ever():
    world = World(connect_freq=(2, 10))
    clients = [world.client(f"c{n}") for n in range(4)]
    world.run(1)
    assert sum(c.connected for c in clients) == 2
    assert world.server.drops["connect-freq"] >= 2
    world.run(60)
    assert all(c.connected for c in clients)


@pytest.fixture
def of_old(monkeypatch):
    """Clients that say nothing of IV_PROTO."""

    def info(*words):
        lines = peer_info(*words).splitlines(keepends=True)
        return "".join(x for x in lines if not x.startswith("IV_PROTO"))

    monkeypatch.setattr(dial, "peer_info", info)


@pytest.mark.usefixtures("of_old")
def test_an_old_client_cannot_be_made_to_export_keys():
    world = World(force_tls_key_material_export=True)
    client = world.client()
    world.run(6)
    assert not client.connected
    (removed,) = world.effects(Removed)
    assert removed.reason == "auth-failed"
    assert "OpenVPN 2.6 or later" in client.ended.detail
    assert not world.effects(Admitted)


def test_a_new_client_exports_keys_where_it_must():
    world = World(force_tls_key_material_export=True)
    client = world.client()
    world.run(6)
    assert client.connected


@pytest.mark.parametrize("least", [60, 90])
def test_keys_of_many_clients_end_at_different_times(least):
    """With a minimum, and with the one that a profile without has."""
    world = World(reneg_sec=100, reneg_sec_min=least)
    for number in range(20):
        world.client(f"c{number}", reneg_sec=0)
    world.run(least - 1)
    assert not world.effects(do.SwapKeys)
    world.run((101 - least) / 2)
    assert 0 < len(world.effects(do.SwapKeys)) < 20
    world.run((103 - least) / 2)
    assert len(world.effects(do.SwapKeys)) >= 20


@pytest.mark.usefixtures("of_old")
def test_an_old_client_speaks_data_v1_without_epochs():
    world = World()
    client = world.client()
    world.run(6)
    assert client.connected
    (keys,) = [e.keys for e in world.effects(do.InstallKeys)]
    assert keys.peer_id is None
    assert not keys.epoch


def test_who_is_never_decided_on_does_not_stay():
    world = World(hand_window=30)
    world.decide = lambda asked: None
    world.client()
    world.run(29)
    assert len(world.server) == 1
    world.run(2)
    assert [r.reason for r in world.effects(Removed)] == ["undecided"]
    assert len(world.server) == 0


@pytest.mark.parametrize("checked", [True, False])
def test_a_user_name_is_a_name_only_where_it_is_checked(checked):
    world = World(
        username_as_common_name=True, password_file="x" if checked else ""
    )
    world.client("eve", auth_user_pass=Credentials("alice", "guess"))
    world.run()
    (asked,) = world.effects(Authenticate)
    assert asked.common_name == ("alice" if checked else "eve")
    assert asked.trusted is not checked


@pytest.mark.parametrize("name", ["a\nb", "x" * 129, "\x1b[31m"])
def test_a_name_that_could_forge_a_line_is_refused(name):
    world = World(password_file="x")
    world.client(auth_user_pass=Credentials(name, "guess"))
    world.run(1)
    assert not world.effects(Authenticate)
    assert [r.reason for r in world.effects(Removed)] == ["bad-name"]


@pytest.mark.parametrize("how", ["disconnect", "remove", "lost"])
def test_the_driver_can_end_a_client(how):
    world = World()
    alice, bob = world.client("alice"), world.client("bob")
    world.run()
    server = world.server
    for number in (0, 99):  # and one that is not there
        if how == "disconnect":
            server.disconnect(number, "HALT", world.now())
        elif how == "remove":
            server.remove(number, "expired")
    if how == "lost":
        server.lost(alice.source)
    world.run(6)
    reason = {"disconnect": "disconnected", "remove": "expired"}
    expected = reason.get(how, "connection-closed")
    assert [r.reason for r in world.effects(Removed)] == [expected]
    assert bob.connected
    assert not server.float_to(0, alice.source)
    server.decide(0, 1, YES, world.now())
    assert alice.ended is None or not alice.connected


def test_a_late_answer_means_nothing():
    world = World(reneg_sec=60)
    world.client()
    world.run()
    no = Decision(allowed=False)
    world.server.decide(0, 77, no, world.now())
    world.run(1)
    assert not world.effects(Removed)
    world.server.stop(world.now())
    world.server.decide(0, 1, YES, world.now())
    world.run(6)
    assert len(world.server) == 0


def test_a_client_on_the_way_in_leaves_without_a_word():
    world = World(wrap="plain")
    world.decide = lambda asked: None
    world.client()
    world.run()
    world.server.stop(world.now())
    world.run(6)
    assert len(world.server) == 0


@pytest.mark.parametrize("topology", ["p2p", "subnet"])
def test_both_families_get_addresses(topology):
    world = World(
        topology=topology,
        network6=IPv6Network("fd00:9::/64"),
        inactive=3000,
        session_timeout=9000,
    )
    own = ClientConfig(ifconfig6=(IPv6Address("fd00:9::77"), 64))
    first, second = world.client("a"), world.client("b")
    world.decide = lambda asked: (
        Decision(allowed=True, config=own) if asked.common_name == "a" else YES
    )
    world.run()
    assert str(first.settings.ifconfig6) == "fd00:9::77/64"
    assert str(second.settings.ifconfig6) == "fd00:9::1000/64"
    assert first.settings.inactive == 3000
    assert first.settings.session_timeout == 9000
    assert first.settings.topology == topology
    thief = world.client("thief")
    world.decide = lambda asked: Decision(allowed=True, config=own)
    world.run(1)
    assert not thief.connected


def test_one_person_may_float_to_its_own_other_address():
    world = World(duplicate_cn=True)
    first, second = world.client("alice"), world.client("alice")
    world.run()
    assert world.server.float_to(1, first.source)
    world.run(1)
    assert [r.reason for r in world.effects(Removed)] == ["replaced"]
    assert world.server.session(1).source == first.source
    assert second.connected


def test_the_old_key_is_forgotten_and_traffic_limits_bring_a_new_one():
    world = World(reneg_sec=0, reneg_bytes=1000, tran_window=30)
    world.client(reneg_sec=0)
    world.run()
    world.server.session(0).traffic.rx_bytes = 2000
    world.run(10)
    assert len(world.effects(do.SwapKeys)) == 1
    assert not world.effects(do.RemoveKeys)
    world.run(31)
    assert [e.slot for e in world.effects(do.RemoveKeys)] == [1]


def test_a_goodbye_over_the_data_channel_is_noticed():
    world = World(ping=5)
    world.client()
    world.run(6)
    assert world.effects(do.SendData)
    world.server.session(0).traffic.peer_exited = True
    world.run(6)
    assert [r.reason for r in world.effects(Removed)] == ["exit"]
