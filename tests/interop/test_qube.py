"""The service in a qube, as units, with QubesDB: what dom0 says is done.

Each scene runs under a capture of the uplink: nothing may leave in clear.
"""

import contextlib
import socket
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from qube import Qube

from lab import addresses as at
from lab.traffic import Flood, fetch, resolve
from qubes_vpn.qubes.profiles import Kept, Profiles


@pytest.fixture
def scene(lab, start_server, tmp_path):
    """A qube under capture, and a server that it may reach."""
    server = start_server()
    qube = Qube(lab, tmp_path)
    qube.lock()
    with lab.capture(server.settings.endpoint) as capture:
        yield qube, server
        qube.stop()
        report = capture.report()
    assert not report.leaks, str(report)


def test_a_qube_without_a_profile_stays_closed_and_says_so(scene):
    qube, _ = scene
    qube.start()
    status = qube.wait_reason("QV-330")
    assert status["phase"] == "blocked"
    assert "qvm-vpn import" in status["reason"]["text"]


def test_from_import_to_traffic_and_what_dom0_changes(scene):
    qube, server = scene
    qube.start()
    qube.wait_reason("QV-330")
    qube.store("home", server.client_profile())
    qube.database.write("/vm-config/vpn-profile", "home")
    qube.wait_connected("home")
    assert fetch(qube.lab.app(1)).status == 200

    # another profile: closed in between, then connected by it
    qube.store("work", server.client_profile())
    qube.database.write("/vm-config/vpn-profile", "work,home")
    qube.wait_connected("work")
    assert fetch(qube.lab.app(1)).status == 200

    # one that is not here
    qube.database.write("/vm-config/vpn-profile", "gone")
    status = qube.wait_reason("QV-331")
    assert "gone" in status["reason"]["text"]
    qube.wait(lambda s: s["phase"] == "blocked", "closing")

    # the service turned off, and on again
    qube.database.write("/vm-config/vpn-profile", "home")
    qube.wait_connected("home")
    qube.database.write("/qubes-service/qubes-vpn", "0")
    qube.wait_reason("QV-333")
    qube.wait(lambda s: s["phase"] == "blocked", "closing")
    qube.database.write("/qubes-service/qubes-vpn", "1")
    qube.wait_connected("home")


def test_a_choice_in_the_qube_is_followed(scene):
    qube, server = scene
    for name in ("home", "work"):
        qube.store(name, server.client_profile())
    qube.start()
    status = qube.wait_reason("QV-331")
    assert "home, work" in status["reason"]["text"]
    store = ("--store", str(qube.profiles))
    qube.command("profile", *store, "use", "work")
    qube.wait_connected("work")
    qube.command("rpc", "Switch", "--argument=home")
    qube.wait_connected("home")
    # dom0's word is the last
    qube.database.write("/vm-config/vpn-profile", "work")
    qube.wait_connected("work")
    assert qube.command(
        "rpc", "Switch", "--argument=home", check=False
    ).returncode


def test_a_provider_with_hundreds_of_profiles(scene):
    """One is chosen among them, and then another that came later."""
    qube, server = scene
    text = server.client_profile()
    others = [Kept(f"town-{n:04}", text.encode()) for n in range(1500)]
    profiles = Profiles(qube.profiles)
    profiles.add(others)
    qube.start()
    status = qube.wait_reason("QV-331")
    assert "town-0005, and 1,494 more" in status["reason"]["text"]
    assert len(status["profiles"]) == 500
    profiles.use("town-1234")
    qube.wait_connected("town-1234")
    profiles.add([Kept("home", text.encode())])
    profiles.use("home")
    qube.wait_connected("home")


def test_the_tunnels_resolver_is_in_force_and_kept(scene):
    qube, server = scene
    qube.store("home", server.client_profile())
    qube.database.write("/vm-config/vpn-dns", "10.99.0.53")
    qube.start()
    qube.wait_connected("home")

    def resolv_conf():
        return qube.lab.vpn.run(["cat", "/etc/resolv.conf"]).stdout

    qube.wait(lambda _: "nameserver 10.99.0.53" in resolv_conf(), "resolv.conf")
    # setup-ip writes it when the uplink comes back
    qube.lab.vpn.run(
        ["sh", "-c", "echo nameserver 10.139.1.1 >/etc/resolv.conf"]
    )
    qube.wait(lambda _: "10.99.0.53" in resolv_conf(), "resolv.conf again")


def connect(namespace, to, port):
    """Connect by TCP, and close. Raises OSError."""
    with namespace.enter():
        sock = socket.socket()
    with sock:
        sock.settimeout(5)
        sock.connect((str(to), port))


def ask(qube, server):
    """Ask a resolver as a qube; [] when there is no answer."""
    with contextlib.suppress(OSError):
        return resolve(qube.lab.app(1), server=server, timeout=1)
    return []


def test_queries_pass_through_to_the_resolver_that_a_qube_chose(scene):
    qube, server = scene
    qube.store("home", server.client_profile())
    qube.database.write("/vm-config/vpn-dns", "passthrough")
    qube.start()
    qube.wait_connected("home")
    chosen, pushed = qube.lab.outside_dns, qube.lab.tunnel_dns
    assert ask(qube, at.OUTSIDE_DNS) == [at.WEB4]
    # by way of the tunnel
    assert chosen.asked[0].client.packed[:2] == bytes((10, 8))
    assert not pushed.asked
    # Qubes' own two addresses are nobody's choice
    for qubes in at.QUBES_DNS:
        assert ask(qube, qubes) == [at.WEB4]
    assert len(pushed.asked) == 2

    # closed: nobody is asked (and the scene's capture saw nothing)
    qube.database.write("/qubes-service/qubes-vpn", "0")
    qube.wait(lambda s: s["phase"] == "blocked", "closing")
    for resolver in (at.OUTSIDE_DNS, at.QUBES_DNS[0]):
        assert not ask(qube, resolver)
    assert len(chosen.asked) == 1
    qube.database.write("/qubes-service/qubes-vpn", "1")
    qube.wait_connected("home")

    # live: back to the tunnel's resolvers, for every address that is asked
    qube.database.write("/vm-config/vpn-dns", "pushed")
    before = len(pushed.asked)

    def redirected(_):
        return (
            ask(qube, at.OUTSIDE_DNS) == [at.WEB4]
            and len(pushed.asked) > before
        )

    qube.wait(redirected, "redirection")


def test_dns_over_tls_is_refused_by_option(scene):
    qube, server = scene
    qube.store("home", server.client_profile())
    qube.database.write("/vm-config/vpn-dns", "pushed block-dot")
    qube.start()
    qube.wait_connected("home")
    with pytest.raises(OSError, match="No route to host"):
        connect(qube.lab.app(1), at.WEB4, 853)
    # a choice that cannot be understood is none: closed, and said
    qube.database.write("/vm-config/vpn-dns", "9.9.9")
    status = qube.wait_reason("QV-335")
    assert "vm-config.vpn-dns" in status["reason"]["text"]
    qube.database.rm("/vm-config/vpn-dns")
    qube.wait_connected("home")
    with pytest.raises(ConnectionRefusedError):
        connect(qube.lab.app(1), at.WEB4, 853)


def test_an_agent_that_is_killed_comes_back_to_a_running_keeper(scene):
    qube, server = scene
    qube.store("home", server.client_profile())
    qube.start()
    qube.wait_connected("home")
    qube.agent.kill()
    qube.agent.wait()
    qube.start_agent()
    qube.wait_connected("home")
    assert fetch(qube.lab.app(1)).status == 200


def test_the_endpoints_for_dom0(scene):
    qube, server = scene
    qube.store("home", server.client_profile())
    qube.start()
    qube.wait_connected("home")
    endpoint = server.settings.endpoint
    output = qube.command("rpc", "Endpoints", "--argument=known").stdout
    assert output == f"{endpoint.address} {endpoint.proto} {endpoint.port}\n"
    assert (
        qube.command("rpc", "Status", "--argument=word").stdout == "connected\n"
    )


def test_another_vpn_program_in_the_qube_is_named(scene, tmp_path):
    qube, server = scene
    qube.store("home", server.client_profile())
    other = tmp_path / "mullvad-daemon"
    other.write_bytes(Path("/bin/sleep").read_bytes())
    other.chmod(0o755)
    child = qube.lab.vpn.popen([str(other), "1000"])
    try:
        qube.start()
        status = qube.wait_reason("QV-332")
        assert "Mullvad VPN" in status["reason"]["text"]
    finally:
        child.kill()
        child.wait()
    qube.wait_connected("home")


def test_a_qube_that_starts_before_the_vpn_waits_for_it(scene):
    qube, server = scene
    qube.store("home", server.client_profile())
    with Flood(qube.lab.app(1), rate=50) as flood:
        time.sleep(0.5)
        assert flood.sent
        assert not flood.echoes
        qube.start()
        qube.wait_connected("home")
        flood.wait_echoes(10)


def test_a_vpn_qube_that_restarts_under_its_clients(scene):
    qube, server = scene
    qube.store("home", server.client_profile())
    qube.start()
    qube.wait_connected("home")
    with Flood(qube.lab.app(1), rate=50) as flood:
        flood.wait_echoes(10)
        qube.shut_down()
        qube.lock()
        qube.start()
        qube.wait_connected("home")
        flood.wait_echoes(len(flood.echoes) + 10)


def test_a_disposable_with_a_read_only_state_connects(scene):
    qube, server = scene
    for name in ("home", "work"):
        qube.store(name, server.client_profile())
    qube.make_read_only()
    qube.start()
    qube.wait_reason("QV-331")
    # a choice that cannot be written holds until the qube ends
    qube.command("rpc", "Switch", "--argument=work")
    qube.wait_connected("work")
    assert not (qube.profiles / "current").exists()


def test_a_qube_restored_under_another_name_connects(scene):
    """Nothing of ours in a qube depends on its name or its number."""
    qube, server = scene
    qube.store("home", server.client_profile())
    qube.database.write("/name", "sys-vpn1")
    qube.database.write("/qubes-vm-type", "ProxyVM")
    qube.start()
    qube.wait_connected("home")
    qube.database.write("/qubes-ip", "10.137.0.99")
    qube.wait_connected("home")
    assert fetch(qube.lab.app(1)).status == 200
