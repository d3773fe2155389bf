"""IPv6 in a tunnel whose path carries less than IPv6 needs."""

import pytest

from lab import addresses as at
from lab.appliance import Appliance
from lab.traffic import fetch
from tests.interop.test_path_mtu import LIMIT, Datagrams, Mirror, narrow, soon


def test_ipv6_is_off_in_the_tunnel_while_the_path_is_too_narrow(
    lab6, start_server
):
    server = start_server(ipv6=True)
    lab6.serve(Mirror(lab6.internet))
    narrow(lab6)
    with Appliance(lab6).lock() as appliance:
        words = ("--plane", "userspace")
        appliance.connect(server.client_profile(), *words)
        appliance.wait_log("QV-306 IPv6 is off: IPv6 needs 1280 bytes")
        # at once, so that programs take IPv4
        with pytest.raises(
            OSError, match=r"refused|denied|unreachable|No route"
        ):
            fetch(lab6.app(1), to=at.WEB6, timeout=LIMIT)
        assert fetch(lab6.app(1)).status == 200
        datagrams = Datagrams(lab6.app(1))
        try:
            # what IPv6's minimum would let through to its loss
            soon(lambda: datagrams.answered(1240) or datagrams.told, "1,240")
            assert 1190 <= datagrams.told < 1240
        finally:
            datagrams.close()
        refused = dict(map(tuple, appliance.status()["refused"]))
        assert "this path carries" in refused["ifconfig-ipv6"]
