import argparse
import io
import re
import stat
import subprocess

import pytest

from qubes_vpn.cli import pki, server_init
from qubes_vpn.cli.world import EX_CANTCREAT, EX_OK, EX_USAGE, World
from qubes_vpn.errors import ConfigError, UnreadableError


def run(*words):
    parser = argparse.ArgumentParser()
    pki.register(parser.add_subparsers())
    args = parser.parse_args(["pki", *map(str, words)])
    world = World(io.StringIO(), io.StringIO(), io.StringIO())
    return args.run(args, world), world.out.getvalue()


def run_init(directory, *words):
    parser = argparse.ArgumentParser()
    server_init.add_arguments(parser)
    args = parser.parse_args(list(words))
    args.dir = directory
    world = World(io.StringIO(), io.StringIO(), io.StringIO())
    return server_init.init(args, world), world.out.getvalue()


def verify(directory, name, purpose, *, crl=True):
    """Ask OpenSSL, which is what peers ask."""
    command = ["openssl", "verify", "-purpose", purpose, "-x509_strict"]
    if crl:
        command += ["-crl_check", "-CRLfile", str(directory / "crl.pem")]
    command += ["-CAfile", str(directory / "ca.crt")]
    return subprocess.run(
        [*command, str(directory / f"issued/{name}.crt")],
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture(params=["p256", "ed25519"])
def directory(request, tmp_path):
    path = tmp_path / "pki"
    run("--dir", path, "init", "--algorithm", request.param)
    run("--dir", path, "server", "vpn.example")
    run("--dir", path, "client", "alice")
    return path


def test_a_certificate_is_good_for_its_own_use_only(directory):
    assert verify(directory, "vpn.example", "sslserver").returncode == 0
    assert verify(directory, "alice", "sslclient").returncode == 0
    assert verify(directory, "vpn.example", "sslclient").returncode != 0
    assert verify(directory, "alice", "sslserver").returncode != 0


def test_a_revoked_certificate_fails_and_the_others_do_not(directory):
    run("--dir", directory, "client", "bob")
    assert run("--dir", directory, "revoke", "alice")[0] == EX_OK
    refused = verify(directory, "alice", "sslclient")
    assert refused.returncode != 0
    assert "revoked" in refused.stdout + refused.stderr
    assert verify(directory, "bob", "sslclient").returncode == 0
    _, listed = run("--dir", directory, "list")
    assert re.search(r"client +alice +revoked", listed)
    assert re.search(r"client +bob +until", listed)


def test_a_name_can_come_back_after_it_was_revoked(directory):
    run("--dir", directory, "revoke", "alice")
    run("--dir", directory, "client", "alice")
    assert verify(directory, "alice", "sslclient").returncode == 0


def test_one_name_has_one_certificate(directory):
    with pytest.raises(ConfigError, match="revoke it first"):
        run("--dir", directory, "client", "alice")


@pytest.mark.parametrize("name", ["../x", "a/b", "", "a b", ".hidden"])
def test_a_name_is_not_a_path(directory, name):
    with pytest.raises(ConfigError):
        run("--dir", directory, "client", name)


def test_an_authority_is_made_once_and_its_keys_are_its_owners(directory):
    with pytest.raises(ConfigError, match="already"):
        run("--dir", directory, "init")
    for path in (directory / "ca.key", directory / "private/alice.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_no_authority_is_said_plainly(tmp_path):
    with pytest.raises(UnreadableError, match=r"index\.json"):
        run("--dir", tmp_path, "list")


def test_a_leaf_does_not_outlive_its_authority(tmp_path):
    run("--dir", tmp_path, "init", "--days", 10)
    run("--dir", tmp_path, "client", "alice", "--days", 1000)
    assert verify(tmp_path, "alice", "sslclient").returncode == 0
    end = [
        subprocess.run(
            ["openssl", "x509", "-noout", "-enddate", "-in", str(path)],
            capture_output=True,
            check=True,
        ).stdout
        for path in (tmp_path / "ca.crt", tmp_path / "issued/alice.crt")
    ]
    assert end[0] == end[1]


def test_a_profile_needs_to_know_where_the_server_is(directory, tmp_path):
    profile = tmp_path / "bob.ovpn"
    with pytest.raises(ConfigError, match="--remote"):
        run("--dir", directory, "client", "bob", "--profile", profile)
    run(
        "--dir", directory, "client", "bob", "--profile", profile,
        "--remote", "vpn.example", "443", "tcp",
    )  # fmt: skip
    assert "remote vpn.example 443 tcp\n" in profile.read_text()
    assert stat.S_IMODE(profile.stat().st_mode) == 0o600


def test_a_file_that_cannot_be_written_is_an_exit_status(directory, tmp_path):
    path = tmp_path / "missing" / "x.ovpn"
    status, _ = run(
        "--dir", directory, "client", "bob", "--profile", path,
        "--remote", "vpn.example",
    )  # fmt: skip
    assert status == EX_CANTCREAT


def test_server_init_makes_everything_at_once(tmp_path):
    directory = tmp_path / "vpn"
    status, said = run_init(
        directory, "--name", "vpn.example", "--dns", "10.99.0.1"
    )
    assert status == EX_OK
    assert "client1.ovpn" in said
    server = (directory / "server.ovpn").read_text()
    client = (directory / "client1.ovpn").read_text()
    assert "tls-crypt-v2 server key" in server
    assert "tls-crypt-v2 client key" in client
    assert "verify-x509-name vpn.example name" in client
    assert 'push "dhcp-option DNS 10.99.0.1"' in server
    for path in directory.glob("*.ovpn"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert verify(directory / "pki", "client1", "sslclient").returncode == 0
    with pytest.raises(ConfigError, match="exists"):
        run_init(directory, "--name", "vpn.example")


def test_server_init_needs_a_name_that_is_one(tmp_path):
    assert run_init(tmp_path)[0] == EX_USAGE
    assert run_init(tmp_path, "--name", "x y")[0] == EX_USAGE
