"""A server that has a name: every address of it is tried, and remembered."""

from lab import addresses as at
from lab.appliance import CONTROL, Appliance
from lab.traffic import Flood, fetch

NAME = "vpn.canary.example"


def test_each_address_is_tried_and_the_good_one_remembered(lab, start_server):
    server = start_server()
    # nobody answers at the first one
    zone = lab.outside_dns.zone
    zone[NAME] = (at.SECOND_SERVER4, at.SERVER4)
    profile = server.client_profile().replace(
        f"remote {at.SERVER4}", f"remote {NAME}"
    )
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile + "hand-window 2\n").wait_connected()
        assert appliance.status()["remote"]["host"] == NAME
        assert appliance.status()["remote"]["address"] == str(at.SERVER4)
        assert fetch(lab.app(1)).status == 200
        asked = len(lab.outside_dns.asked)
        assert {one.what for one in lab.outside_dns.asked} == {NAME}
        # a new connection asks nobody outside
        zone.clear()
        with Flood(lab.app(1), rate=50) as flood:
            appliance.command("connect", "--control", CONTROL)
            appliance.wait_connected(count=2)
            flood.wait_echoes(5)
        assert appliance.status()["remote"]["address"] == str(at.SERVER4)
        assert len(lab.outside_dns.asked) == asked
