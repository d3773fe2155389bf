"""The lab's peers, against each other: what later tests take for granted.

Debian's openvpn is both the server and the client, so a red test here is the
lab's fault, and what its client leaks is the measure of what ours must not.
"""

import signal

import pytest

from lab import LabError
from lab import addresses as at
from lab.openvpn import Client, Wrap, cpu_seconds
from lab.relay import Faults, Relay, TcpRelay, Way
from lab.traffic import Flood, download, fetch, resolve


def connect(lab, server, **changed):
    users = server.settings.users
    client = Client(
        lab.vpn,
        lab.scratch,
        server.client_profile(**changed),
        credentials=server.credentials() if users else "",
    )
    client.start()
    client.wait_connected()
    return client


@pytest.mark.parametrize("wrap", Wrap)
def test_wraps(lab, start_server, wrap):
    server = start_server(wrap=wrap, cipher="CHACHA20-POLY1305")
    with lab.capture(server.settings.endpoint) as capture:
        connect(lab, server)
        assert fetch(lab.app(1)).seen == server.settings.network4 + 2
    assert server.ciphers() == ["CHACHA20-POLY1305"]
    assert capture.report().canaries == ()
    assert capture.report().tunnel > 10


@pytest.mark.parametrize("certificates", [True, False])
def test_user_and_password(lab, start_server, certificates):
    users = (("bob", "x"), ("alice", "wonder land"))
    server = start_server(users=users[1:], certificates=certificates)
    client = connect(lab, server)
    server.wait_for("username 'alice'")
    client.stop()
    wrong = Client(
        lab.vpn,
        lab.scratch,
        server.client_profile(),
        credentials="alice\nguess\n",
    )
    wrong.start()
    wrong.wait_for("AUTH_FAILED")


def test_tcp_and_renegotiation(lab, start_server):
    server = start_server(proto="tcp", reneg=3)
    connect(lab, server)
    with Flood(lab.app(1)) as flood:
        server.wait_rekeyed()
        assert flood.wait_echoes()[0].seen == server.settings.network4 + 2


def test_ipv6_outside_and_inside(lab6, start_server):
    server = start_server(address=at.SERVER6, ipv6=True)
    with lab6.capture(server.settings.endpoint) as capture:
        connect(lab6, server)
        seen = fetch(lab6.app(1), to=at.WEB6).seen
    assert str(seen).startswith("fd00:8::")
    assert capture.report().canaries == ()
    assert capture.report().tunnel > 10


def test_dns_of_the_tunnel(lab, start_server):
    server = start_server()
    connect(lab, server)
    assert resolve(lab.app(1), server=at.TUNNEL_DNS) == [at.WEB4]
    asked = lab.tunnel_dns.asked
    assert [one.client for one in asked] == [server.settings.network4 + 2]


def test_openvpn_itself_leaks_when_killed(lab, start_server):
    server = start_server()
    client = connect(lab, server)
    capture = lab.capture(server.settings.endpoint)
    with capture, Flood(lab.app(1)) as flood:
        flood.wait_echoes()
        client.signal(signal.SIGKILL)
        seen = {echo.seen for echo in flood.wait_echoes(20)}
    assert at.NET_OUTSIDE4 in seen
    assert capture.report().canaries


def test_a_peer_that_ends_is_told_apart_from_a_silent_one(lab, start_server):
    server = start_server()
    client = connect(lab, server)
    assert client.cpu_seconds == cpu_seconds(client.process.pid)
    server.signal(signal.SIGSTOP)
    with pytest.raises(LabError, match="silent"):
        server.wait_for("nothing like this", timeout=0.1)
    server.signal(signal.SIGKILL)
    with pytest.raises(LabError, match="ended"):
        server.wait_for("nothing like this")


# --- the relay


def test_relay_passes_everything(lab, start_server):
    server = start_server()
    with Relay(lab.internet, server.settings.endpoint) as relay:
        connect(lab, server, address=at.RELAY4)
        assert download(lab.app(1), 300_000) == 300_000
        assert relay.passed[Way.UP] > 5
        assert relay.passed[Way.DOWN] > 5
        relay.rebind()
        assert fetch(lab.app(1)).seen == server.settings.network4 + 2
        server.wait_for("Float requested|FLOAT|floated")


def test_tcp_relay_cuts_frames_into_pieces(lab, start_server):
    server = start_server(proto="tcp")
    relay = TcpRelay(lab.internet, server.settings.endpoint, chunk=7)
    with relay:
        client = connect(lab, server, address=at.RELAY4)
        assert fetch(lab.app(1)).seen == server.settings.network4 + 2
        assert relay.passed[Way.UP] > 5
        relay.cut()
        client.wait_for("Connection reset")


def test_relay_is_as_bad_as_it_is_told(lab, start_server):
    server = start_server()
    faults = Faults(drop=0.2, duplicate=0.2, reorder=0.2)
    with Relay(lab.internet, server.settings.endpoint, faults, seed=1) as bad:
        connect(lab, server, address=at.RELAY4)
        with Flood(lab.app(1)) as flood:
            flood.wait_echoes(50)
        assert (
            min(bad.happened[k] for k in ("drop", "duplicate", "reorder")) > 5
        )
        # openvpn counts what it is given twice.
        server.wait_for("bad packet ID|replay", timeout=20)


def test_relay_blackhole_and_corruption(lab, start_server):
    server = start_server()
    with Relay(lab.internet, server.settings.endpoint) as relay:
        client = connect(lab, server, address=at.RELAY4)
        relay.faults = Faults(corrupt=1.0)
        with Flood(lab.app(1)) as flood:
            server.wait_for("Decrypt error")
            assert flood.echoes == []
        relay.blackhole = True
        client.wait_for("Inactivity timeout", timeout=40)


def test_relay_replays_what_it_recorded(lab, start_server):
    server = start_server()
    with Relay(lab.internet, server.settings.endpoint) as relay:
        connect(lab, server, address=at.RELAY4)
        with relay.recording() as tape, Flood(lab.app(1)) as flood:
            flood.wait_echoes(5)
        up = [datagram for way, datagram in tape if way is Way.UP]
        relay.inject(Way.UP, up[0])
        server.wait_for("bad packet ID|replay")
