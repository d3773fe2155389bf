"""A link that loses, reorders and duplicates: it connects, traffic flows."""

import pytest

from lab.appliance import Appliance
from lab.relay import Faults, Relay
from lab.traffic import Flood, fetch


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_fifth_of_all_datagrams_lost(lab, start_server, seed):
    server = start_server()
    faults = Faults(drop=0.2, duplicate=0.1, reorder=0.2, late=0.05)
    with Relay(
        lab.internet, server.settings.endpoint, faults=faults, seed=seed
    ) as relay:
        profile = server.client_profile(address=relay.endpoint.address)
        with (
            Appliance(lab).lock() as appliance,
            lab.capture(relay.endpoint) as capture,
        ):
            appliance.connect(profile).wait_connected(60)
            with Flood(lab.app(1), rate=100) as flood:
                flood.wait_echoes(100, timeout=60)
            assert fetch(lab.app(1), timeout=60).status == 200
            numbers = [echo.number for echo in flood.echoes]
            assert len(numbers) == len(set(numbers)), "a duplicate came in"
            report = capture.report()
    assert not report.leaks, str(report)
