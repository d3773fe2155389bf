"""qubes-vpn check: what it prints, and its exit status."""

import io
import json
import os

import pytest

from qubes_vpn.cli.main import main
from qubes_vpn.wire.keyfile import format_static_key

FINGERPRINT = ":".join(["AB"] * 32)
PROFILE = f"""\
client
remote vpn.example 443 tcp
peer-fingerprint {FINGERPRINT}
auth-user-pass login
tls-crypt ta.key
up /etc/x
"""
SECRETS = ("user7", "hunter2", "000102")


@pytest.fixture
def profile(tmp_path):
    (tmp_path / "login").write_text("user7\nhunter2\n")
    (tmp_path / "ta.key").write_text(format_static_key(bytes(range(256))))
    path = tmp_path / "a.ovpn"
    path.write_text(PROFILE)
    return path


def check(capsys, *words):
    status = main(["check", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_good_profile(profile, capsys):
    status, out, err = check(capsys, profile)
    assert (status, err) == (0, "")
    assert "vpn.example port 443, TCP" in out
    assert "line 6, up: no scripts are run" in out
    assert not any(secret in out for secret in SECRETS)
    assert all(len(line) <= 80 for line in out.splitlines())


def test_for_programs(profile, capsys):
    status, out, _ = check(capsys, profile, "--json")
    value = json.loads(out)
    assert (status, value["ok"], value["v"]) == (0, True, 1)
    assert not any(secret in out for secret in SECRETS)


def test_every_error_on_a_line_of_its_own(profile, capsys):
    profile.write_text("client\nzzzz\nremote a 0\n<ca>\n</ca>\n")
    status, out, err = check(capsys, profile)
    assert (status, out) == (78, "")
    assert err.splitlines() == [
        f'{profile}:2:1: unknown directive "zzzz"',
        f"{profile}:3:10: remote needs a port from 1 to 65535",
        f"{profile}:4:1: ca: is empty",
    ]
    status, out, err = check(capsys, profile, "--json")
    problems = json.loads(out)["problems"]
    assert status == 78
    assert [one["line"] for one in problems] == [2, 3, 4]
    assert problems[0]["code"] == "QV-102"


def test_print_needs_no_other_file(profile, tmp_path, capsys):
    status, out, _ = check(capsys, profile, "--print")
    assert status == 0
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "b.ovpn").write_text(out)
    again = check(capsys, alone / "b.ovpn", "--print")
    assert again == (0, out, "")
    assert all(secret in out for secret in SECRETS)


def test_print_without_secrets(profile, capsys):
    _, out, _ = check(capsys, profile, "--print", "--redact")
    assert not any(secret in out for secret in SECRETS)


def test_a_server_s_profile(tmp_path, capsys):
    path = tmp_path / "s.ovpn"
    path.write_text("server 10.8.0.0 255.255.255.0\n")
    status, _, err = check(capsys, path, "--server")
    assert (status, "needs cert and key" in err) == (78, True)
    assert check(capsys, path, "--server", "--print")[0] == 64


def test_a_good_server_s_profile(tmp_path, capsys):
    from datetime import UTC, datetime

    from qubes_vpn.crypto.pki import Algorithm, Usage, issue, make_authority

    now = datetime.now(UTC)
    ca = make_authority("CA", Algorithm.P256, now, 10)
    one = issue(ca, "s", Usage.SERVER, Algorithm.P256, now, 10)
    (tmp_path / "ca").write_bytes(ca.certificate)
    (tmp_path / "cert").write_bytes(one.certificate)
    (tmp_path / "key").write_bytes(one.key)
    path = tmp_path / "s.ovpn"
    path.write_text("server 10.8.0.0 255.255.255.0\nca ca\ncert cert\nkey key")
    status, out, _ = check(capsys, path, "--server")
    assert (status, "10.8.0.0/24" in out) == (0, True)
    status, out, _ = check(capsys, path, "--server", "--json")
    assert (status, json.loads(out)["kind"]) == (0, "server")


def test_what_is_no_file_is_refused_at_once(tmp_path, capsys):
    os.mkfifo(tmp_path / "fifo")
    with (tmp_path / "big").open("wb") as out:
        out.truncate(1 << 30)
    for name in ("fifo", "big", "none", "."):
        status, _, err = check(capsys, tmp_path / name)
        assert status == 77
        assert len(err.splitlines()) == 1


def test_terminals_are_not_written_to_by_a_profile(profile, capsys):
    profile.write_bytes(b"cl\x1b[2Jient\xff\n")
    status, out, err = check(capsys, profile)
    assert status == 78
    assert "\x1b" not in out + err
    err.encode("ascii")


def test_ten_thousand_lines(profile, capsys):
    lines = "".join(
        f"route 10.{n >> 8}.{n & 255}.0 255.255.255.0\n" for n in range(10_000)
    )
    profile.write_text(PROFILE + lines)
    assert check(capsys, profile)[0] == 0


def test_streams_are_given(profile):
    from qubes_vpn.cli.check import run
    from qubes_vpn.cli.world import World

    world = World(io.StringIO(), io.StringIO(), io.StringIO())

    class Args:
        whole = server = json = redact = False

    Args.profile = profile
    assert run(Args, world) == 0
    assert "vpn.example" in world.out.getvalue()
