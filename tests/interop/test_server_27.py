"""Our server and OpenVPN 2.7, and 2.7 as the server of our client."""

import itertools

import pytest

from lab import addresses as at
from lab import openvpn27
from lab.appliance import Appliance
from lab.openvpn import DEFAULT_PUSH, Client, Server, Settings, Wrap
from lab.ours import OurServer
from lab.traffic import Flood, download, fetch

pytestmark = pytest.mark.long
MATRIX = list(itertools.product(Wrap, ("udp", "tcp")))


@pytest.fixture(scope="module")
def program():
    return openvpn27.command()


def rekeyed(lab, server):
    with Flood(lab.app(1), rate=50) as flood:
        flood.wait_echoes(10)
        server.wait_rekeyed(2)
        assert download(lab.app(2), 200_000) == 200_000
        flood.wait_echoes(20)
        lost = flood.sent - len(flood.echoes)
    assert lost < flood.sent * 0.1


@pytest.mark.parametrize(("wrap", "proto"), MATRIX, ids=str)
@pytest.mark.parametrize("rekeys", ["client", "server"])
def test_openvpn_27_connects_to_us(lab, program, wrap, proto, rekeys):
    reneg = 3 if rekeys == "server" else 3600
    dns = f"dns server 1 address {at.TUNNEL_DNS}"
    push = (*DEFAULT_PUSH, dns)
    settings = Settings(wrap=wrap, proto=proto, reneg=reneg, push=push)
    with OurServer(lab.internet, lab.scratch, settings) as server:
        client = Client(
            lab.vpn,
            lab.scratch,
            server.client_profile(reneg=3600),
            # this machine's own resolvers are none of its business
            extra=[
                "dns-updown disable",
                *["reneg-sec 3"] * (rekeys == "client"),
            ],
        )
        client.program = program
        with client:
            client.wait_connected()
            assert dns in client.log
            assert fetch(lab.app(1)).seen == settings.network4 + 2
            rekeyed(lab, server)


@pytest.mark.parametrize(("wrap", "proto"), MATRIX, ids=str)
def test_we_connect_to_openvpn_27(lab, program, wrap, proto):
    settings = Settings(wrap=wrap, proto=proto, reneg=4)
    server = Server(lab.internet, lab.scratch, settings)
    server.program = program
    with server, Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile(reneg=6)).wait_connected()
        assert fetch(lab.app(1)).status == 200
        rekeyed(lab, server)
