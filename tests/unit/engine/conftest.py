"""What the live tests share: a namespace, servers in it, engines."""

from ipaddress import ip_address

import pytest

from lab.namespace import Namespace
from lab.openvpn import Server, Settings
from qubes_vpn.engine.states import Closed, Established
from tests.unit.engine.live import Live, profile_of

LOOPBACK = ip_address("127.0.0.1")


@pytest.fixture
def namespace():
    made = Namespace("engine")
    made.ip("link set lo up")
    yield made
    made.close()


@pytest.fixture
def start_server(namespace, tmp_path):
    """start_server(Pki or None, ...) -> a Server with these certificates."""
    started = []

    def start(known=None, **fields):
        settings = Settings(address=LOOPBACK, **fields)
        server = Server(namespace, tmp_path, settings)
        server.pki = known or server.pki
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def connect(namespace):
    made = []

    def connect(server, *, features=None, **changes):
        profile = profile_of(server, **changes)
        live = Live(namespace, profile, features=features)
        made.append(live)
        return live.run_until(
            lambda one: isinstance(one.engine.state, (Established, Closed))
        )

    yield connect
    for live in made:
        live.close()


@pytest.fixture
def attach(namespace):
    """attach(profile, ...) -> a Live that has begun."""
    made = []

    def attach(profile, **engine):
        made.append(Live(namespace, profile, **engine))
        return made[-1]

    yield attach
    for live in made:
        live.close()
