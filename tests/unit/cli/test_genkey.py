import argparse
import base64
import io
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from qubes_vpn.cli import genkey, passwd
from qubes_vpn.cli.world import EX_CANTCREAT, EX_OK, EX_USAGE, World
from qubes_vpn.crypto import passwords
from qubes_vpn.errors import ConfigError


def command(module, *words, stdin=""):
    parser = argparse.ArgumentParser()
    module.register(parser.add_subparsers())
    args = parser.parse_args([str(word) for word in words])
    world = World(io.StringIO(), io.StringIO(), io.StringIO(stdin))
    return args.run(args, world), world


def openvpn(*words):
    return subprocess.run(
        ["openvpn", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
    )


def shape(text):
    """What two files of one kind have in common: all but the digits."""
    return [
        line if line.startswith(("#", "-")) else len(line)
        for line in text.splitlines(keepends=True)
    ]


@pytest.mark.interop
@pytest.mark.parametrize(
    "kind", ["secret", "tls-crypt-v2-server", "auth-token"]
)
def test_a_key_file_has_the_form_of_openvpns(tmp_path, kind):
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    openvpn("--genkey", kind, theirs)
    assert command(genkey, "genkey", kind, ours)[0] == EX_OK
    assert shape(ours.read_text()) == shape(theirs.read_text())
    assert ours.read_text() != theirs.read_text()


@pytest.mark.interop
@pytest.mark.parametrize("metadata", [None, b"", b"alice", bytes(733)])
def test_openvpn_wraps_with_our_server_key_and_reads_our_client_key(
    tmp_path, metadata
):
    server, theirs, ours = (tmp_path / name for name in ("s", "theirs", "ours"))
    command(genkey, "genkey", "tls-crypt-v2-server", server)
    extra = [] if metadata is None else [base64.b64encode(metadata).decode()]
    made = openvpn(
        "--tls-crypt-v2", server, "--genkey", "tls-crypt-v2-client", theirs,
        *extra,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout
    option = [] if metadata is None else ["--metadata", extra[0]]
    status, _ = command(
        genkey, "genkey", "tls-crypt-v2-client", ours,
        "--server-key", server, *option,
    )  # fmt: skip
    assert status == EX_OK
    assert shape(ours.read_text()) == shape(theirs.read_text())


@pytest.mark.parametrize("kind", ["tls-auth", "tls-crypt-v2-server"])
def test_a_key_is_for_its_owner_and_is_never_overwritten(tmp_path, kind):
    path = tmp_path / "key"
    command(genkey, "genkey", kind, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    status, world = command(genkey, "genkey", kind, path)
    assert status == EX_CANTCREAT
    assert "--force" in world.err.getvalue()
    assert path.read_bytes() == before
    assert command(genkey, "genkey", kind, path, "--force")[0] == EX_OK
    assert path.read_bytes() != before
    assert list(tmp_path.iterdir()) == [path]


def test_a_client_key_needs_the_servers(tmp_path):
    with pytest.raises(ConfigError, match="needs the server's key"):
        command(genkey, "genkey", "tls-crypt-v2-client", tmp_path / "k")
    bad = tmp_path / "bad"
    bad.write_text("nothing")
    with pytest.raises(ConfigError, match="no OpenVPN"):
        command(
            genkey, "genkey", "tls-crypt-v2-client", tmp_path / "k",
            "--server-key", bad,
        )  # fmt: skip


def test_too_much_metadata_is_refused(tmp_path):
    server = tmp_path / "s"
    command(genkey, "genkey", "tls-crypt-v2-server", server)
    with pytest.raises(ConfigError, match="733"):
        command(
            genkey, "genkey", "tls-crypt-v2-client", tmp_path / "k",
            "--server-key", server,
            "--metadata", base64.b64encode(bytes(734)).decode(),
        )  # fmt: skip


def test_a_password_is_kept_as_its_hash_alone(tmp_path):
    path = tmp_path / "passwords"
    assert command(passwd, "passwd", path, "alice", stdin="correct\n")[0] == 0
    assert command(passwd, "passwd", path, "bob", stdin="other\n")[0] == 0
    assert command(passwd, "passwd", path, "alice", stdin="newer\n")[0] == 0
    users = dict(line.split(":") for line in path.read_text().splitlines())
    assert set(users) == {"alice", "bob"}
    assert passwords.verify_password("newer", users["alice"])
    assert not passwords.verify_password("correct", users["alice"])
    assert "newer" not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    command(passwd, "passwd", path, "alice", "--delete")
    assert path.read_text().startswith("bob:")


@pytest.mark.parametrize("user", ["", "a:b", "a b", "x" * 65, "a\nroot"])
def test_a_user_name_that_could_be_two_is_refused(tmp_path, user):
    status, _ = command(passwd, "passwd", tmp_path / "f", user, stdin="x\n")
    assert status == EX_USAGE
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "plain",
        "$scrypt$ln=40,r=8,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43,
        "$scrypt$ln=15,r=0,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43,
        "$scrypt$ln=24,r=99,p=1$AAAAAAAAAAAAAAAAAAAAAA$" + "A" * 43,
        "$scrypt$ln=15,r=8,p=1$AAAAA$" + "A" * 43,
    ],
)
def test_what_is_not_a_hash_matches_no_password(stored):
    assert not passwords.is_hash(stored)
    assert not passwords.verify_password("", stored)


def test_nobody_costs_as_much_as_somebody():
    assert passwords.is_hash(passwords.NOBODY)


def test_the_files_never_import_more_than_they_need():
    """A key is made in a moment, also on a machine without OpenVPN."""
    loaded = subprocess.run(
        [sys.executable, "-c",
         "import sys, qubes_vpn.cli.genkey; print(*sys.modules)"],
        capture_output=True, text=True, check=True, cwd=Path.cwd(),
    ).stdout.split()  # fmt: skip
    assert "OpenSSL" not in loaded
    assert "asyncio" not in loaded
