"""What a server asks and says while we are locked, and what we do then."""

import re

import pytest

from lab import addresses as at
from lab.appliance import CONTROL, Appliance
from lab.openvpn import Client
from lab.traffic import Flood, fetch
from tests.interop.test_settings import routes
from tests.unit.engine.test_live_channel import heard
from tests.unit.engine.test_live_scenarios import managing


@pytest.fixture
def managed(lab, start_server):
    """managed(...) -> a server, and its management."""
    yield from managing(start_server, lab.scratch)


def asked(appliance, kind):
    """Wait for a question of this kind; what the status says of it."""
    appliance.wait(
        lambda: (appliance.status()["prompt"] or {}).get("kind") == kind,
        30,
        f"a question: {kind}",
    )
    return appliance.status()["prompt"]


LOGIN = "<auth-user-pass>\nmaria\ncorrect horse\n</auth-user-pass>\n"


def test_a_pending_login_waits_for_a_person(lab, managed):
    server, management = managed(
        *("management-client-auth", "auth-user-pass-optional")
    )
    appliance = Appliance(lab).lock()
    with lab.capture(server.settings.endpoint) as capture, appliance:
        appliance.connect(server.client_profile() + LOGIN)
        appliance.wait(
            lambda: heard(management, ">CLIENT:ENV,END"), 20, "the login"
        )
        assert "username=maria" in management.said.decode()
        page = "https://sso.example/in?a=1"
        management.say(f"client-pending-auth 0 1 WEB_AUTH::{page} 40")
        prompt = asked(appliance, "url")
        assert prompt["text"] == page
        assert 0 < prompt["seconds"] <= 60
        shown = appliance.command("status", "--control", CONTROL).stdout
        assert f"question   {page}" in shown
        assert "s left: qubes-vpn answer" in shown
        management.say('client-pending-auth 0 1 "CR_TEXT:R,E:Code?" 40')
        assert asked(appliance, "crtext")["text"] == "Code?"
        management.said = b""
        appliance.command("answer", "--control", CONTROL, text="4711\n")
        appliance.wait(
            lambda: heard(management, "CR_RESPONSE,0,1,NDcxMQ=="),
            *(20, "the answer"),
        )
        assert appliance.status()["phase"] != "connected"
        management.say("client-auth-nt 0 1")
        appliance.wait_connected()
        assert fetch(lab.app(1)).status == 200
        assert "correct horse" not in appliance.log()
        report = capture.report()
    assert not report.leaks, str(report)


def test_sent_away_and_sent_home(lab, managed):
    server, management = managed(push=("redirect-gateway def1", "ping 2"))
    appliance = Appliance(lab).lock()
    with lab.capture(server.settings.endpoint) as capture, appliance:
        appliance.connect(server.client_profile()).wait_connected()
        with Flood(lab.app(1), rate=50) as flood:
            flood.wait_echoes(5)
            management.say("client-kill 0 RESTART,[N]")
            appliance.wait_connected(count=2)
            flood.wait_echoes(5)
        assert "QV-520" in appliance.log()
        management.say("client-kill 1 HALT,enough")
        appliance.wait_log("QV-521")
        appliance.wait_phase("blocked")
        with pytest.raises(OSError, match=r".*"):
            fetch(lab.app(1), timeout=1)
        report = capture.report()
    assert not report.leaks, str(report)


def test_each_connection_has_fresh_settings(lab, start_server):
    push = ("route 172.20.0.0 255.255.0.0", "ping 1")
    server = start_server(push=push, extra=("explicit-exit-notify 1",))
    with Appliance(lab).lock() as appliance:
        appliance.connect(server.client_profile()).wait_connected()
        assert "172.20.0.0/16" in routes(lab)
        server.stop()
        text = server.config().replace("172.20.0.0", "172.21.0.0")
        server.config = lambda: text
        server.start()
        appliance.wait_connected(count=2)
        assert "172.21.0.0/16" in routes(lab)
        assert "172.20.0.0/16" not in routes(lab)


@pytest.mark.parametrize("mode", ["none", "nointeract"])
def test_a_refused_password_and_auth_retry(lab, start_server, mode, tmp_path):
    server = start_server(users=(("maria", "correct horse"),))
    secret = tmp_path / "login"
    secret.write_text("maria\nguess\n")
    secret.chmod(0o600)
    lines = f"auth-retry {mode}\nconnect-retry 1 1\n"
    with Appliance(lab).lock() as appliance:
        appliance.connect(
            server.client_profile() + lines, "--auth-user-pass", str(secret)
        )
        appliance.wait_log("QV-510", count=1 if mode == "none" else 3)
        if mode == "none":
            assert appliance.exit_status() == 77
        else:
            assert appliance.client.poll() is None


def test_what_the_link_is_like(lab, start_server):
    """Its own port and address, and buffers beyond the system's limits."""
    server = start_server()
    lines = f"local {at.VPN.ip4}\nlport 40123\nsndbuf 3000000\nrcvbuf 4000000\n"
    profile = server.client_profile().replace("nobind\n", "")
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile + lines).wait_connected()
        shown = lab.vpn.run(["ss", "-Huanm"]).stdout
        (link,) = re.findall(
            rf"{at.VPN.ip4}:40123\s+{at.SERVER4}:1194\s+(skmem.*)", shown
        )
        # the kernel doubles them
        assert "rb8000000" in link
        assert "tb6000000" in link
        assert fetch(lab.app(1)).status == 200


def test_an_ordinary_client_of_any_machine(lab, start_server):
    """--unlocked: this machine's own traffic goes through the server."""
    server = start_server()
    with Appliance(lab) as appliance:
        profile = server.client_profile()
        appliance.connect(profile, "--unlocked").wait_connected()
        assert fetch(lab.vpn).seen == server.settings.network4 + 2


@pytest.mark.long
def test_two_with_one_certificate_are_told_so(lab, start_server):
    """The server drops one for the other, in silence, and again."""
    server = start_server()
    server.stop()
    text = server.config().replace("duplicate-cn\n", "")
    text = text.replace("keepalive 2 10", "keepalive 1 3")
    server.config = lambda: text.replace("ping-restart 10", "ping-restart 3")
    server.start()
    profile = server.client_profile()
    twin = Client(lab.net, lab.scratch, profile, extra=["route-nopull"])
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile).wait_connected()
        with twin:
            appliance.wait_log("QV-505")
            assert "elsewhere" not in appliance.log()
            appliance.wait_log("also used elsewhere?")
