"""OpenVPN 2.7 as the server of a locked qube: what only it can do."""

import json
from ipaddress import IPv4Address

import pytest

from lab import addresses as at
from lab import openvpn27
from lab.appliance import Appliance
from lab.openvpn import Server, Settings, Wrap
from lab.services import DnsServer
from lab.traffic import Flood, download, fetch, resolve
from tests.unit.engine.test_live_scenarios import Management

pytestmark = pytest.mark.long

OTHER_DNS = IPv4Address("10.8.255.54")
EPOCH = r"Outgoing Epoch Data key 1: Cipher '{}' initialized"


@pytest.fixture(scope="module")
def program():
    return openvpn27.command()


@pytest.fixture
def start_server(lab, program):
    """start_server(...) -> an OpenVPN 2.7 that listens, and its management."""
    closing = []

    def start(*lines, **fields):
        path = lab.scratch / "management"
        extra = (f"management {path} unix", *lines)
        settings = Settings(extra=extra, **fields)
        server = Server(lab.internet, lab.scratch, settings)
        server.program = program
        closing.append(server.stop)
        server.start()
        management = Management(path)
        closing.append(management.link.close)
        return server, management

    yield start
    for close in reversed(closing):
        close()


def routes(lab):
    words = ["ip", "-json", "route", "show", "table", "7078"]
    return {one["dst"] for one in json.loads(lab.vpn.run(words).stdout)}


@pytest.mark.parametrize("wrap", [Wrap.PLAIN, Wrap.TLS_CRYPT_V2])
@pytest.mark.parametrize("cipher", ["AES-256-GCM", "CHACHA20-POLY1305"])
def test_epochs_and_dynamic_tls_crypt(lab, start_server, wrap, cipher):
    server, _ = start_server(wrap=wrap, cipher=cipher)
    appliance = Appliance(lab).lock()
    with lab.capture(server.settings.endpoint) as capture, appliance:
        profile = server.client_profile(reneg=4)
        appliance.connect(profile, "--plane", "userspace").wait_connected()
        assert download(lab.app(1), 300_000) == 300_000
        server.wait_for(EPOCH.format(cipher))
        server.wait_for("Outgoing dynamic tls-crypt: Cipher")
        with Flood(lab.app(1), rate=50) as flood:
            flood.wait_echoes(10)
            server.wait_rekeyed()
            assert download(lab.app(2), 300_000) == 300_000
            flood.wait_echoes(20)
            lost = flood.sent - len(flood.echoes)
        assert lost < flood.sent * 0.1
        assert appliance.log().count("connected ") == 1
        report = capture.report()
    assert not report.leaks, str(report)
    assert "Decrypt error" not in server.log


def test_dns_options_and_updates(lab, start_server):
    lab.internet.ip(f"addr add {OTHER_DNS}/32 dev lo")
    zone = {at.WEB_NAME: (at.WEB4,)}
    other = DnsServer("other", lab.internet, (OTHER_DNS,), zone)
    lab.serve(other)
    server, management = start_server(
        push=(
            f"dns server 1 address {at.TUNNEL_DNS}",
            "dns search-domains corp.example",
            "redirect-gateway def1",
            "ping 2",
        )
    )
    appliance = Appliance(lab).lock()
    with lab.capture(server.settings.endpoint) as capture, appliance:
        appliance.connect(server.client_profile()).wait_connected()
        assert resolve(lab.app(1)) == [at.WEB4]
        assert lab.tunnel_dns.asked
        assert not other.asked
        assert fetch(lab.app(1)).status == 200
        update = (
            "route 172.20.0.0 255.255.0.0, "
            f"dns server 1 address {OTHER_DNS}, ?unheard of"
        )
        management.say(f'push-update-broad "{update}"')
        appliance.wait(
            lambda: "172.20.0.0/16" in routes(lab), 10, "the new route"
        )
        with Flood(lab.app(1), rate=50) as flood:
            flood.wait_echoes(10)
        before = len(lab.tunnel_dns.asked)
        assert resolve(lab.app(1)) == [at.WEB4]
        assert other.asked
        assert len(lab.tunnel_dns.asked) == before
        # and takes it back
        management.say('push-update-broad "-route"')
        appliance.wait(
            lambda: "172.20.0.0/16" not in routes(lab), 10, "the route's end"
        )
        assert fetch(lab.app(1)).status == 200
        assert appliance.log().count("connected ") == 1
        assert not lab.outside_dns.asked
        report = capture.report()
    assert not report.leaks, str(report)
