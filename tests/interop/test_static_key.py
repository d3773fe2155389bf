"""Static-key mode: no TLS, no server that pushes; all is in the profile."""

from lab.appliance import Appliance
from lab.openvpn import Settings
from lab.traffic import download, fetch
from tests.unit.engine.test_live import StaticKey


def test_traffic_flows_with_nothing_but_a_static_key(lab):
    with (
        StaticKey(lab.internet, lab.scratch, Settings()) as server,
        Appliance(lab).lock() as appliance,
        lab.capture(server.settings.endpoint) as capture,
    ):
        appliance.connect(server.client_profile()).wait_connected()
        assert fetch(lab.app(1)).status == 200
        assert download(lab.app(1), 300_000) == 300_000
        report = capture.report()
    assert not report.leaks, str(report)
