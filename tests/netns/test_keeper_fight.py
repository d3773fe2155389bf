"""The whole product, and a program that undoes the lock again and again."""

import time

import pytest

from lab.appliance import CONTROL, Appliance
from lab.openvpn import Server, Settings
from lab.traffic import Flood, fetch
from tests.netns.test_keeper_guardian import fight, forwards
from tests.netns.toy import wait

SETTINGS = Settings(push=("redirect-gateway def1",))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_fight_is_told_and_ends_by_itself(lab):
    """Nothing passes for a minute, the status says so, and it goes on."""
    with (
        Server(lab.internet, lab.scratch, SETTINGS) as server,
        Appliance(lab).lock() as appliance,
        Flood(lab.app(1)) as flood,
    ):
        appliance.connect(server.client_profile()).wait_connected()
        flood.wait_echoes(3)
        with lab.capture(SETTINGS.endpoint) as capture:
            fight(lab)
            begin = time.monotonic()
            page = " ".join(
                appliance.command("status", "--control", CONTROL).stdout.split()
            )
            assert "stopped nothing is forwarded: the " in page
            assert "last by nft (process" in page
            assert "s of peace" in page
            assert "QV-405" in appliance.log()
            wait(lambda: appliance.status()["stopped"], "the same as JSON")
            seen = len(flood.echoes)
            time.sleep(40)
            assert len(flood.echoes) == seen
            assert not forwards(lab)
            wait(lambda: forwards(lab), "forwarding")
            assert 55 < time.monotonic() - begin < 75
            flood.wait_echoes(3)
        assert capture.report().leaks == ()
        assert fetch(lab.app(1)).status == 200
        assert (
            "stopped"
            not in appliance.command("status", "--control", CONTROL).stdout
        )
