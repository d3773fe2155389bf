"""Real openvpn servers in the lab."""

import pytest

from lab.openvpn import Server, Settings


@pytest.fixture
def start_server(request):
    """start_server(**Settings' fields) -> a Server that listens.

    In the lab6 fixture's lab where the test uses that, else in lab's.
    """
    name = "lab6" if "lab6" in request.fixturenames else "lab"
    lab = request.getfixturevalue(name)
    started = []

    def start(**fields):
        server = Server(lab.internet, lab.scratch, Settings(**fields))
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()
