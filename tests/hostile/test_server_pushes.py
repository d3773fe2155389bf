"""What a server may push and what the keeper takes are the same set.

With the whole product: a push that only half of us accepted once made every
session fail, again and again.
"""

import pytest

from lab import Lab
from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import DEFAULT_PUSH, Server, Settings
from lab.traffic import fetch

PUSH = (
    *DEFAULT_PUSH,
    "dhcp-option DOMAIN a_b",
    "dhcp-option DOMAIN-SEARCH x;id",
    "dhcp-option DNS6 ::ffff:9.9.9.9",
    "route 10.137.0.0 255.255.0.0",
    "route 127.0.0.0 255.0.0.0",
    "setenv-safe X $(id)",
    "ping-restart 60",
)


@pytest.mark.netns
def test_a_strange_push_is_a_tunnel_all_the_same():
    with Lab() as lab:
        server = Server(lab.internet, lab.scratch, Settings(push=PUSH))
        server.start()
        appliance = Appliance(lab).lock()
        with lab.capture(server.settings.endpoint) as capture:
            appliance.connect(server.client_profile()).wait_connected()
            assert str(fetch(lab.app(1)).seen) != str(at.NET.ip4)
            status = appliance.status()
        appliance.stop()
        server.stop()
    assert capture.report().leaks == ()
    refused = " ".join(name for name, _ in status["refused"])
    for word in ("a_b", "x;id", "9.9.9.9", "10.137.0.0", "127.0.0.0"):
        assert word in refused, status["refused"]
