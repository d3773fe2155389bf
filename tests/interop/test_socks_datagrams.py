"""UDP through a SOCKS5 proxy, to Debian's openvpn."""

from ipaddress import ip_address

import pytest

from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Client
from lab.relay import Way
from lab.socks import SOCKS_PORT, SocksRelay
from lab.traffic import Flood, download, fetch

DIRECTIVE = f"socks-proxy {at.RELAY4} {SOCKS_PORT}\n"


def test_openvpn_itself_takes_this_proxy(lab, start_server):
    server = start_server()
    # it keeps only the server out of the tunnel, and not the proxy
    around = f"route {at.RELAY4} 255.255.255.255 net_gateway\n"
    profile = server.client_profile() + DIRECTIVE + around
    with SocksRelay(lab.internet, server.settings.endpoint) as proxy:
        client = Client(lab.vpn, lab.scratch, profile)
        with client:
            client.wait_connected()
            assert fetch(lab.app(1)).status == 200
    assert proxy.targets == {server.settings.endpoint}


@pytest.mark.parametrize("named", [at.RELAY4, ip_address("0.0.0.0")])
def test_datagrams_through_a_proxy(lab, start_server, named):
    server = start_server(reneg=3)
    profile = server.client_profile() + DIRECTIVE
    appliance = Appliance(lab).lock()
    # a fragment, and what is no header at all, are not taken for packets
    junk = b"\0\0\1\1" + bytes(6)
    proxy = SocksRelay(
        lab.internet, server.settings.endpoint, named=named, extra=junk
    )
    with (
        lab.capture(proxy.endpoint, proxy.relay) as capture,
        proxy,
        appliance,
    ):
        appliance.connect(profile).wait_connected()
        with Flood(lab.app(1), rate=50) as flood:
            server.wait_rekeyed()
            flood.wait_echoes(20)
        assert download(lab.app(2), 300_000) == 300_000
        status = appliance.status()
        assert dict(status["drops"])["relay-header"]
        assert status["plane"]["name"] == "userspace"
        # the association is the connection: without it nothing is relayed
        proxy.cut()
        appliance.wait_log("QV-304 proxy-refused: socks-proxy: it hangs up")
        appliance.wait_connected(count=2)
        assert fetch(lab.app(1)).status == 200
        report = capture.report()
    assert proxy.targets == {server.settings.endpoint}
    assert proxy.passed[Way.DOWN] > 100
    assert not report.leaks, str(report)


def test_a_relay_elsewhere_is_refused(lab, start_server):
    server = start_server()
    profile = server.client_profile() + DIRECTIVE
    proxy = SocksRelay(
        lab.internet, server.settings.endpoint, named=at.SECOND_SERVER4
    )
    with (
        lab.capture(proxy.endpoint) as capture,
        proxy,
        Appliance(lab).lock() as appliance,
    ):
        appliance.connect(profile)
        appliance.wait_log(
            f"QV-305 proxy-refused: socks-proxy: it relays at {at.SECOND_SERVER4}"
        )
        assert not capture.report().leaks
