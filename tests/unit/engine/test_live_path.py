"""What the path to a real server does to a session."""

import signal
import time
from ipaddress import ip_address

import pytest

from lab.relay import Relay, Way
from qubes_vpn.engine import effects
from qubes_vpn.engine.states import Established
from tests.unit.engine.live import profile_of

pytestmark = [pytest.mark.netns, pytest.mark.interop]

GATEWAY = ip_address("10.8.0.1")
BETWEEN = ip_address("127.0.0.2")


@pytest.fixture
def relay(namespace, start_server):
    """relay(...) -> a server, and a relay before it."""
    made = []

    def start(**fields):
        server = start_server(**fields)
        made.append(Relay(namespace, server.settings.endpoint, address=BETWEEN))
        return server, made[-1].start()

    yield start
    for one in made:
        one.stop()


@pytest.mark.parametrize(
    "seconds", [pytest.param(1, marks=pytest.mark.long), 3]
)
def test_the_first_packet_comes_again_after_tls_timeout(relay, attach, seconds):
    server, between = relay(client_extra=(f"tls-timeout {seconds}",))
    tries = []

    def lose_the_first(way, datagram):
        if way is Way.UP and len(tries) < 2:
            tries.append((time.monotonic(), datagram))
        return [] if len(tries) < 2 else [datagram]

    between.hook = lose_the_first
    live = attach(profile_of(server, address=BETWEEN))
    live.run_until(lambda one: isinstance(one.engine.state, Established))
    (first, reset), (second, again) = tries
    # the wrap has its own number and time; the session id is the same
    assert reset[:9] == again[:9]
    assert seconds * 0.9 <= second - first < seconds + 1.5
    assert live.ping_through(GATEWAY)[20] == 0


@pytest.mark.long
def test_a_server_that_falls_silent_and_ping_exit(start_server, connect):
    server = start_server(
        push=("ping-exit 3",),
        extra=("keepalive 1 9",),
        # what keepalive pushes behind it would be in force
        client_extra=('pull-filter ignore "ping-restart"',),
    )
    live = connect(server)
    live.run_until(lambda one: one.traffic.rx_packets >= 5)
    assert isinstance(live.engine.state, Established)
    server.signal(signal.SIGSTOP)
    try:
        live.run_until(lambda one: one.of(effects.Ended))
    finally:
        server.signal(signal.SIGCONT)
    (ended,) = live.of(effects.Ended)
    assert (ended.reason, ended.code, ended.retry) == (
        *("ping-exit", "QV-506"),
        False,
    )
