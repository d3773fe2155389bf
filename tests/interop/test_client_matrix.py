"""Our client against Debian's openvpn, with the shipped lock loaded."""

import itertools

import pytest

from lab.appliance import Appliance
from lab.openvpn import Wrap
from lab.traffic import Flood, download, fetch

WRAPS = (Wrap.PLAIN, Wrap.TLS_AUTH, Wrap.TLS_CRYPT)
CIPHERS = ("AES-256-GCM", "CHACHA20-POLY1305")
LOGINS = ("certificate", "password")
BULK = 200_000


def login_fields(login):
    if login == "certificate":
        return {}
    return {"users": (("maria", "correct horse"),), "certificates": False}


@pytest.mark.parametrize(
    ("wrap", "cipher", "login"),
    list(itertools.product(WRAPS, CIPHERS, LOGINS)),
    ids=str,
)
def test_traffic_flows_both_ways_and_survives_a_rekey(
    lab, start_server, wrap, cipher, login, tmp_path
):
    server = start_server(wrap=wrap, cipher=cipher, **login_fields(login))
    words = []
    if login == "password":
        secret = tmp_path / "login"
        secret.write_text(server.credentials())
        secret.chmod(0o600)
        words = ["--auth-user-pass", str(secret)]
    profile = server.client_profile() + "reneg-sec 4\n"
    appliance = Appliance(lab).lock()
    with lab.capture(server.settings.endpoint) as capture:
        with appliance:
            appliance.connect(profile, *words).wait_connected()
            assert fetch(lab.app(1)).status == 200
            assert len(fetch(lab.app(1), upload=b"x" * BULK).body)
            with Flood(lab.app(1), rate=50) as flood:
                flood.wait_echoes(10)
                server.wait_rekeyed()
                before = len(flood.echoes)
                assert download(lab.app(2), BULK) == BULK
                flood.wait_echoes(20)
                lost = flood.sent - len(flood.echoes)
            assert before
            assert lost < flood.sent * 0.1, "a rekey must lose nothing"
            status = appliance.status()
        report = capture.report()
    assert set(server.ciphers()) == {cipher}
    assert len(server.ciphers()) >= 2
    assert status["cipher"] == cipher
    assert status["phase"] == "connected"
    assert report.tunnel > 100
    assert not report.leaks, str(report)
