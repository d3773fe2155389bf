"""Several servers in one profile, each with a control wrap of its own."""

from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Wrap, wrap_keys
from lab.traffic import fetch


def block(address, port, wrap):
    key = wrap_keys(wrap)[1]
    return (
        f"<connection>\nremote {address} {port} udp\n"
        f"<{wrap}>\n{key}</{wrap}>\n</connection>\n"
    )


def test_the_second_server_has_another_wrap(lab, start_server):
    server = start_server(wrap=Wrap.TLS_CRYPT)
    lines = server.client_profile(wrap=Wrap.PLAIN).splitlines(keepends=True)
    common = [line for line in lines if not line.startswith("remote ")]
    profile = (
        "".join(common)
        + "hand-window 2\n"
        + block(at.SECOND_SERVER4, 4444, Wrap.TLS_AUTH)
        + block(at.SERVER4, at.VPN_PORT, Wrap.TLS_CRYPT)
    )
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile).wait_connected()
        assert "QV-" in appliance.log(), "the first one does not answer"
        assert appliance.status()["remote"]["address"] == str(at.SERVER4)
        assert fetch(lab.app(1)).status == 200
