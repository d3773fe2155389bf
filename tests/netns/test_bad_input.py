"""What a person gets wrong: one clear line, an exit code, a closed network."""

import os
import time

import pytest

from lab import Lab
from lab.appliance import Appliance
from lab.openvpn import Server, Settings
from lab.pki import pki, static_key
from lab.traffic import Flood


@pytest.fixture(scope="module")
def lab():
    with Lab() as made:
        yield made


@pytest.fixture(scope="module")
def server(lab):
    server = Server(lab.internet, lab.scratch, Settings())
    server.start()
    yield server
    server.stop()


@pytest.fixture
def appliance(lab):
    with Appliance(lab).lock() as made:
        yield made


def told(appliance, status):
    """The one line that the client said before it ended with `status`."""
    assert appliance.exit_status() == status, appliance.log()
    lines = [
        line
        for line in appliance.log().splitlines()
        if line.startswith("qubes-vpn:")
    ]
    assert "Traceback" not in appliance.log()
    assert len(lines) == 1, appliance.log()
    return lines[0]


def closed(lab, server):
    with lab.capture(server.settings.endpoint) as capture:
        with Flood(lab.app(1)) as flood:
            flood.wait_sent(20)
        report = capture.report()
    assert not flood.echoes
    assert not report.leaks, str(report)


def test_an_unknown_directive(lab, server, appliance):
    profile = server.client_profile()
    line = profile.count("\n") + 1
    appliance.connect(profile + "remote-cert-tsl server\n")
    said = told(appliance, 78)
    assert f":{line}:1: " in said
    assert "remote-cert-tls" in said, "the nearest known name"
    closed(lab, server)


def test_a_file_that_is_not_there(lab, server, appliance):
    profile = "client\ndev tun\nremote 192.0.2.10\nca missing.pem\n"
    appliance.connect(profile)
    assert ":4:" in told(appliance, 78)
    closed(lab, server)


def test_a_malformed_key(lab, server, appliance):
    profile = server.client_profile()
    at = profile.index("-----BEGIN OpenVPN Static key V1-----") + 40
    appliance.connect(profile[:at] + "zz" + profile[at + 2 :])
    said = told(appliance, 78)
    assert "tls-crypt" in said
    closed(lab, server)


def test_a_profile_that_is_not_there(lab, server, appliance, tmp_path):
    appliance.connect_file(tmp_path / "none.ovpn")
    assert "none.ovpn" in told(appliance, 77)
    closed(lab, server)


def test_a_folder_and_a_fifo_are_no_profiles(appliance, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        appliance.connect_file(path)
        assert "not a regular file" in told(appliance, 77)


def test_no_lock_no_client(server):
    with Lab() as bare:
        appliance = Appliance(bare).connect(server.client_profile())
        assert appliance.exit_status() == 69
        assert "lock" in appliance.log()
        assert "Traceback" not in appliance.log()


def retries(appliance, word):
    """It names the directive, waits, tries again, and does not exit."""
    appliance.wait_log("next try in", timeout=90)
    assert word in appliance.log(), appliance.log()
    assert appliance.client.poll() is None
    assert "Traceback" not in appliance.log()


def test_a_server_with_another_certificate(lab, server, appliance):
    profile = server.client_profile()
    other = pki("another").ca.certificate
    begin, end = profile.index("<ca>"), profile.index("</ca>")
    changed = profile[:begin] + f"<ca>\n{other}" + profile[end:]
    appliance.connect(changed)
    retries(appliance, " ca: ")
    closed(lab, server)


def test_a_wrong_key_looks_like_silence(lab, server, appliance):
    profile = server.client_profile() + "hand-window 3\n"
    begin = profile.index("<tls-crypt>")
    end = profile.index("</tls-crypt>")
    changed = profile[:begin] + f"<tls-crypt>\n{static_key()}" + profile[end:]
    appliance.connect(changed)
    retries(appliance, "tls-crypt")
    closed(lab, server)


def test_a_silent_server(lab, server, appliance):
    profile = server.client_profile(port=4444) + "hand-window 3\n"
    appliance.connect(profile)
    retries(appliance, "(remote)")
    closed(lab, server)


def test_a_wrong_password_ends_it(lab, tmp_path):
    settings = Settings(users=(("maria", "right"),), port=1195, tunnel=2)
    server = Server(lab.internet, lab.scratch, settings)
    server.start()
    secret = tmp_path / "login"
    secret.write_text("maria\nwrong-password\n")
    secret.chmod(0o600)
    with Appliance(lab).lock() as appliance:
        appliance.connect(
            server.client_profile(), "--auth-user-pass", str(secret)
        )
        assert appliance.exit_status() == 77, appliance.log()
        assert "(auth-user-pass)" in appliance.log()
        assert "wrong-password" not in appliance.log()
    closed(lab, server)
    server.stop()


def test_nothing_waits_for_ever(appliance, server):
    """A polite stop in the middle of connecting ends at once, with 0."""
    appliance.connect(server.client_profile(port=4444))
    appliance.wait_log("reach")
    begin = time.monotonic()
    appliance.signal("agent", 15)
    assert appliance.exit_status() == 0
    assert time.monotonic() - begin < 10
