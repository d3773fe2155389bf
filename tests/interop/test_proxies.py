"""Through a proxy that Debian ships: tinyproxy (HTTP), microsocks (SOCKS5)."""

import shutil
import time

import pytest

from lab import Endpoint
from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Client
from lab.proxy import DigestProxy
from lab.traffic import fetch

NAME, PASSWORD = "maria", "open-sesame"
HTTP_PORT, SOCKS_PORT = 8888, 1080


def start_tinyproxy(lab, *, login):
    config = lab.scratch / "tinyproxy.conf"
    words = [
        f"Port {HTTP_PORT}",
        f"Listen {at.RELAY4}",
        "Timeout 600",
        "MaxClients 10",
        f"ConnectPort {at.VPN_PORT}",
    ]
    if login:
        words.append(f"BasicAuth {NAME} {PASSWORD}")
    config.write_text("\n".join(words) + "\n")
    lab.internet.popen(["tinyproxy", "-d", "-c", str(config)])
    return HTTP_PORT


def start_microsocks(lab, *, login):
    words = ["-i", str(at.RELAY4), "-p", str(SOCKS_PORT)]
    if login:
        words += ["-u", NAME, "-P", PASSWORD]
    lab.internet.popen(["microsocks", *words])
    return SOCKS_PORT


def wait_for_port(lab, port):
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        listening = lab.internet.run(["ss", "-Hltn", f"sport = :{port}"])
        if listening.stdout.strip():
            return
        time.sleep(0.05)
    raise AssertionError("the proxy does not listen")


def directive(kind, port, login, path):
    if kind == "socks":
        return f"socks-proxy {at.RELAY4} {port} {path if login else ''}"
    return f"http-proxy {at.RELAY4} {port} {f'{path} basic' if login else ''}"


@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
@pytest.mark.parametrize("kind", ["http", "socks"])
def test_through_a_proxy(lab, start_server, kind, login, tmp_path):
    assert shutil.which("tinyproxy")
    assert shutil.which("microsocks")
    server = start_server(proto="tcp")
    start = start_tinyproxy if kind == "http" else start_microsocks
    port = start(lab, login=login)
    wait_for_port(lab, port)
    secret = tmp_path / "proxy-login"
    secret.write_text(f"{NAME}\n{PASSWORD}\n")
    secret.chmod(0o600)
    profile = server.client_profile()
    profile += directive(kind, port, login, secret) + "\n"
    appliance = Appliance(lab).lock()
    proxy = Endpoint(at.RELAY4, "tcp", port)
    with lab.capture(proxy) as capture, appliance:
        appliance.connect(profile).wait_connected()
        assert fetch(lab.app(1)).status == 200
        assert appliance.status()["remote"]["port"] == port
        assert PASSWORD not in appliance.log()
        report = capture.report()
    assert not report.leaks, str(report)


def test_a_proxy_that_wants_a_password_is_named(lab, start_server):
    server = start_server(proto="tcp")
    port = start_tinyproxy(lab, login=True)
    wait_for_port(lab, port)
    profile = server.client_profile() + f"http-proxy {at.RELAY4} {port}\n"
    with Appliance(lab).lock() as appliance:
        appliance.connect(profile).wait_log("next try in")
        assert "http-proxy-user-pass" in appliance.log()
        assert appliance.client.poll() is None


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256"])
def test_a_proxy_that_wants_a_digest(lab, start_server, tmp_path, algorithm):
    server = start_server(proto="tcp")
    secret = tmp_path / "proxy-login"
    secret.write_text(f"{NAME}\n{PASSWORD}\n")
    secret.chmod(0o600)
    lines = (
        f"http-proxy {at.RELAY4} {HTTP_PORT} auto-nct\n"
        f"http-proxy-user-pass {secret}\n"
    )
    profile = server.client_profile() + lines
    login = NAME, PASSWORD
    endpoint = server.settings.endpoint
    with DigestProxy(
        lab.internet, endpoint, login, algorithm=algorithm
    ) as proxy:
        with (
            Appliance(lab).lock() as appliance,
            lab.capture(proxy.endpoint) as capture,
        ):
            appliance.connect(profile).wait_connected()
            assert fetch(lab.app(1)).status == 200
            report = capture.report()
        assert not report.leaks, str(report)
        assert proxy.refused == 1
        if algorithm == "MD5":
            # the proxy asks for what openvpn says
            with Client(
                lab.net, lab.scratch, profile, extra=["route-nopull"]
            ) as client:
                client.wait_connected()


def test_a_wrong_digest_is_named(lab, start_server, tmp_path):
    server = start_server(proto="tcp")
    secret = tmp_path / "proxy-login"
    secret.write_text(f"{NAME}\nguess\n")
    secret.chmod(0o600)
    line = f"http-proxy {at.RELAY4} {HTTP_PORT} {secret} auto\n"
    login = NAME, PASSWORD
    with (
        DigestProxy(lab.internet, server.settings.endpoint, login) as proxy,
        Appliance(lab).lock() as appliance,
    ):
        appliance.connect(server.client_profile() + line)
        appliance.wait_log("next try in")
        assert "http-proxy-user-pass" in appliance.log()
        assert proxy.refused >= 2
