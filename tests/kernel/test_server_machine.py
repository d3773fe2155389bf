"""Our server, in a machine whose kernel has the ovpn driver."""

import pytest

from lab import openvpn27
from tests.kernel import machine

SECONDS = 900

pytestmark = pytest.mark.timeout(SECONDS + 600)


def test_the_driver_carries_the_clients_of_our_server(tmp_path):
    openvpn27.command()
    module = "tests.kernel.server_checks"
    said = machine.run(SECONDS, tmp_path / "console", GUEST_MODULE=module)
    assert "SERVER CHECKED" in said, said[-12_000:]
