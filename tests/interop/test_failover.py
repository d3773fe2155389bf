"""Servers that do not answer: the next one, and when to give up."""

import os

from lab import addresses as at
from lab.appliance import Appliance
from lab.traffic import fetch


def profile(server, *more):
    """A dead server before the one that lives, or before none."""
    text = server.client_profile()
    line = next(one for one in text.splitlines() if one.startswith("remote "))
    dead = f"remote {at.SECOND_SERVER4} 4444\n"
    return text.replace(f"{line}\n", dead + "".join(more)) + "hand-window 1\n"


def test_gives_up_after_as_many_tries_as_the_profile_says(lab, start_server):
    text = profile(start_server()) + "connect-retry-max 2\nconnect-retry 1 1\n"
    with Appliance(lab).lock() as appliance:
        appliance.connect(text)
        assert appliance.exit_status() == os.EX_UNAVAILABLE
        assert appliance.log().count("next try") == 2


def test_the_server_that_answers_is_found_in_any_order(lab, start_server):
    server = start_server()
    text = profile(server, f"remote {at.SERVER4} {at.VPN_PORT}\n")
    with Appliance(lab).lock() as appliance:
        appliance.connect(text + "remote-random\n").wait_connected()
        assert fetch(lab.app(1)).status == 200


def test_a_stream_that_never_opens_is_left_after_connect_timeout(
    lab, start_server
):
    server = start_server(proto="tcp")
    lab.internet.nft("""
        table inet silent {
            chain in {
                type filter hook input priority 0
                tcp dport 4444 drop
            }
        }
    """)
    text = profile(server, f"remote {at.SERVER4} {at.VPN_PORT}\n")
    with Appliance(lab).lock() as appliance:
        appliance.connect(text + "connect-timeout 2\n")
        appliance.wait_log("QV-302")
        assert f"{at.SECOND_SERVER4} port 4444/tcp" in appliance.log()
        appliance.wait_connected()
        assert fetch(lab.app(1)).status == 200
        # one that says no is left at once
        server.stop()
        appliance.wait_log("Connection refused", 60)
        assert "QV-301" in appliance.log()
