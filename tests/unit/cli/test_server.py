"""What `qubes-vpn server` does before it serves."""

import argparse
import base64
import io

import pytest

from qubes_vpn.cli import server, server_init, server_status
from qubes_vpn.cli.world import World
from qubes_vpn.errors import ConfigError, UnavailableError, UnreadableError


def parse(*words):
    parser = argparse.ArgumentParser()
    server.register(parser.add_subparsers())
    return parser.parse_args(["server", *map(str, words)])


def world():
    return World(io.StringIO(), io.StringIO(), io.StringIO())


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("vpn")
    args = parse("init", "--name", "vpn.example", "--dir", path)
    assert server.run(args, world()) == 0
    return path


def load(directory, *words, more=""):
    path = directory / "server.ovpn"
    changed = directory / "changed.ovpn"
    changed.write_text(path.read_text() + more)
    return server.load(changed, parse(changed, *words), world())


def test_what_init_writes_is_a_profile(directory):
    profile = load(directory)
    assert len(profile.tls_crypt_v2) == 128
    assert str(profile.network4) == "10.99.0.0/24"
    assert profile.keepalive == (10, 60)
    assert profile.ping_restart == 120
    assert profile.crl_file == str(directory / "pki/crl.pem")
    assert not profile.notes


@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_init_makes_a_server_of_either_protocol(tmp_path, proto):
    words = ("--proto", proto, "--port", 443, "--network6", "fd00:9::/64")
    args = parse("init", "--name", "192.0.2.1", "--dir", tmp_path, *words)
    assert server.run(args, world()) == 0
    profile = load(tmp_path)
    (listen,) = profile.listens
    assert (listen.port, listen.proto) == (443, proto)
    assert "redirect-gateway def1 ipv6" in profile.push
    client = (tmp_path / "client1.ovpn").read_text()
    assert f"remote 192.0.2.1 443 {proto}\n" in client
    assert ("explicit-exit-notify" in client) is (proto == "udp")


def test_the_command_line_adds_passwords(directory):
    profile = load(directory, "--passwords", "users", "--dev", "tun9")
    assert profile.password_file == "users"
    assert profile.wants_password
    assert profile.dev == "tun9"


@pytest.mark.parametrize("verify", ["none", "optional"])
def test_a_server_that_lets_in_everybody_does_not_start(directory, verify):
    line = f"verify-client-cert {verify}\n"
    with pytest.raises(ConfigError, match="lets in everybody"):
        load(directory, more=line)
    assert load(directory, "--pam", "login", more=line).pam_service == "login"


def test_a_password_file_that_is_missing_is_said_at_once(directory, tmp_path):
    args = parse(directory / "server.ovpn", "--passwords", tmp_path / "none")
    with pytest.raises(UnavailableError, match="none"):
        server.run(args, world())


def test_a_profile_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(UnreadableError):
        server.run(parse(tmp_path / "missing"), world())


def test_denied_keys_are_base64(directory, tmp_path):
    path = tmp_path / "denied"
    encoded = base64.b64encode(b"alice").decode()
    path.write_text(f"# lost laptop\n{encoded}  # hers\n\n")
    assert server.denied_keys(path, world()) == {b"alice"}
    assert server.denied_keys(None, world()) == frozenset()
    path.write_text("fine=\nnot base64!\n")
    with pytest.raises(ConfigError, match="base64"):
        server.denied_keys(path, world())


def test_init_refuses_what_is_no_host(tmp_path):
    for name in ("", "a b", "-x", "x\ny"):
        args = parse("init", f"--name={name}", "--dir", tmp_path)
        assert server_init.init(args, world()) == 64


def test_a_status_has_a_line_for_each_client():
    one = {
        "number": 0, "name": "alice\x1b[31m", "address4": "10.8.0.2",
        "address6": "", "remote": "192.0.2.7:5000", "since": 0,
        "rx_bytes": 1234, "tx_bytes": 56_789_000, "transport": "udp",
        "cipher": "AES-256-GCM", "floated": 2,
    }  # fmt: skip
    lines = list(
        server_status.describe(
            {
                "device": "tun0",
                "clients": [one],
                "half_open": 1,
                "drops": {"replay": 3, "bad-tag": 4},
            }
        )
    )
    text = "\n".join(lines)
    assert "1 clients, 1 on the way in" in text
    assert "alice?[31m  10.8.0.2  from 192.0.2.7:5000" in text
    assert "in 1.2 kB, out 57 MB" in text
    assert "moved 2 times" in text
    assert text.index("bad-tag") < text.index("replay")
    assert all(line.isprintable() and len(line) <= 80 for line in lines)
