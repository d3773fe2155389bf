"""The client engine against Debian's openvpn."""

from ipaddress import ip_address

import pytest

from lab.namespace import Namespace
from lab.openvpn import Server, Settings, Wrap
from qubes_vpn.engine import effects
from qubes_vpn.engine.states import Closed, Established
from tests.unit.engine.live import Live, profile_of

pytestmark = [pytest.mark.netns, pytest.mark.interop]

LOOPBACK = ip_address("127.0.0.1")
GATEWAY = ip_address("10.8.0.1")


@pytest.fixture
def namespace():
    made = Namespace("engine")
    made.ip("link set lo up")
    yield made
    made.close()


@pytest.fixture
def start_server(namespace, tmp_path):
    started = []

    def start(**fields):
        settings = Settings(address=LOOPBACK, **fields)
        server = Server(namespace, tmp_path, settings)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def connect(namespace):
    made = []

    def connect(server, **changes):
        live = Live(namespace, profile_of(server, **changes))
        made.append(live)
        return live.run_until(
            lambda one: isinstance(one.engine.state, (Established, Closed))
        )

    yield connect
    for live in made:
        live.close()


@pytest.mark.parametrize("wrap", Wrap)
def test_connects_pings_and_says_goodbye(start_server, connect, wrap):
    server = start_server(wrap=wrap)
    live = connect(server)
    assert live.ping_through(GATEWAY)[20] == 0
    live.engine.stop(live.now())
    live.drain()
    server.wait_for("CC-EEN exit message received by peer")
    assert [type(one) for one in live.effects[-4:]] == [
        effects.CloseForwarding,
        effects.Send,
        effects.RemoveKeys,
        effects.Ended,
    ]
