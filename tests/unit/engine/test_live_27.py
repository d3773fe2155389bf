"""The client engine against OpenVPN 2.7: what only it can do."""

import dataclasses
import socket
from ipaddress import ip_address

import pytest

from lab import openvpn27
from lab.openvpn import Server, Settings
from qubes_vpn.config.profile import Credentials
from qubes_vpn.engine import effects
from qubes_vpn.engine.peer_info import PlaneFeatures
from tests.unit.engine.live import profile_of

pytestmark = [pytest.mark.netns, pytest.mark.interop, pytest.mark.long]

LOOPBACK = ip_address("127.0.0.1")
GATEWAY = ip_address("10.8.0.1")


@pytest.fixture
def newest(namespace, tmp_path):
    """A server of OpenVPN 2.7 with a management socket."""
    socket_path = tmp_path / "management"
    settings = Settings(
        address=LOOPBACK,
        reneg=2,
        extra=(f"management {socket_path} unix",),
    )
    server = Server(namespace, tmp_path, settings)
    server.program = openvpn27.command()
    server.management = socket_path
    with server:
        yield server


def _manage(server, command):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(str(server.management))
        link.sendall(f"{command}\n".encode())
        link.settimeout(5)
        said = b""
        while b"SUCCESS" not in said and b"ERROR" not in said:
            said += link.recv(4096)
        return said.decode()


def restarted(server, **changes):
    server.settings = dataclasses.replace(server.settings, **changes)
    server.stop()
    server.start()
    return server


def test_a_27_server_changes_settings_while_connected(newest, connect):
    # a key that the server renews first takes an update that waits with it
    live = connect(restarted(newest, reneg=0), reneg=2)
    assert live.ping_through(GATEWAY)[20] == 0
    assert live.of(effects.ApplySettings)[-1].settings.dyn_tls_crypt
    update = "route 172.20.0.0 255.255.0.0, ?unheard of"
    assert "SUCCESS" in _manage(newest, f'push-update-broad "{update}"')
    # and it waits until the server hears from the client
    assert live.ping_through(GATEWAY)[20] == 0
    live.run_until(lambda one: len(one.of(effects.ApplySettings)) == 2)
    routes = live.of(effects.ApplySettings)[-1].settings.routes
    assert "172.20.0.0/16" in [str(one.network) for one in routes]
    # later keys are protected by the dynamic tls-crypt
    live.run_until(lambda one: one.engine.status.key_id == 2)
    assert live.ping_through(GATEWAY)[20] == 0
    assert not live.channel.drops


@pytest.mark.parametrize(
    "cipher",
    ["AES-128-GCM", "AES-192-GCM", "AES-256-GCM", "CHACHA20-POLY1305"],
)
def test_a_27_server_and_we_use_epochs(newest, connect, cipher):
    restarted(newest, cipher=cipher)
    live = connect(newest, features=PlaneFeatures(epoch=True))
    settings = live.of(effects.ApplySettings)[-1].settings
    assert settings.aead_epoch
    assert settings.cipher == cipher
    for _ in range(3):
        assert live.ping_through(GATEWAY)[20] == 0
    live.run_until(lambda one: one.engine.status.key_id == 1)
    assert live.ping_through(GATEWAY)[20] == 0
    assert not live.channel.drops


def test_a_27_server_calls_us_by_another_name(newest, attach):
    """override-username: the token is for the name that it pushes."""
    folder = newest.scratch / "ccd"
    folder.mkdir(exist_ok=True)
    (folder / "client").write_text("override-username bob\n")
    restarted(
        newest,
        users=(("alice", "wonder land"),),
        extra=(
            *newest.settings.extra,
            *(f"client-config-dir {folder}", "auth-gen-token 600 120"),
        ),
    )
    alice = Credentials("alice", "wonder land")
    profile = profile_of(newest, reneg=0)
    live = attach(profile, credentials=alice)
    # two more keys, each with the token of the one before
    live.run_until(lambda one: one.engine.status.key_id == 2)
    assert live.engine.token[0] == "bob"
    assert live.ping_through(GATEWAY)[20] == 0
    assert "succeeded for username 'bob'" in newest.log
    # and so does the next session begin
    live.close()
    later = attach(profile, credentials=alice, token=live.engine.token)
    later.run_until(lambda one: one.of(effects.OpenForwarding))
    assert later.ping_through(GATEWAY)[20] == 0
