"""A tunnel that carries nothing wakes nobody, but for what must not be missed.

What must: keepalive, the engine's heartbeat, the guardian's look.
"""

import time

import pytest

from bench.process import wakeups
from lab import Lab
from lab.appliance import Appliance
from lab.openvpn import Server, Settings

pytestmark = pytest.mark.netns
SECONDS = 8
# Of all three processes. With a clock of a second in each it is above 7 a
# second; what is left is below 1.
MOST = 2.5


def test_an_idle_tunnel():
    settings = Settings(extra=("keepalive 30 120",))
    with (
        Lab() as lab,
        Server(lab.internet, lab.scratch, settings) as server,
        Appliance(lab).lock() as appliance,
    ):
        appliance.connect(server.client_profile()).wait_connected()
        time.sleep(3)  # until the path is known, and the guardian at rest
        before = wakeups(appliance.client.pid)
        time.sleep(SECONDS)
        after = wakeups(appliance.client.pid)
        woken = {role: after[role] - before[role] for role in after}
        assert sorted(woken) == ["agent", "engine", "keeper"]
        assert sum(woken.values()) < MOST * SECONDS, woken
        assert appliance.status()["connected_for"] >= SECONDS
