"""qubes-vpn profile: import, list, show, use, remove, set-credentials."""

import io
import json
import os
import pty
import zipfile

import pytest

from qubes_vpn.cli.main import main

FINGERPRINT = ":".join(["AB"] * 32)
GOOD = f"client\nremote vpn.example\npeer-fingerprint {FINGERPRINT}\n"
ASKS = GOOD + "auth-user-pass\nup x\n"


@pytest.fixture
def world(tmp_path, capsys, monkeypatch):
    """profile(*words, stdin="") -> (status, out, err)."""

    def profile(*words, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        base = ["profile", "--store", str(tmp_path / "store")]
        status = main([*base, *map(str, words)])
        return (status, *capsys.readouterr())

    return profile


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.ovpn").write_text(ASKS)
    (folder / "b.ovpn").write_text(ASKS.replace("vpn.", "other."))
    return folder


def names(world):
    rows = json.loads(world("list", "--json")[1])["profiles"]
    return [one["name"] for one in rows]


def test_nothing_yet(world):
    status, out, _ = world("list")
    assert (status, "profile import" in out) == (0, True)


def test_a_life(world, files):
    status, out, err = world("import", files)
    assert (status, err) == (0, "")
    assert "vpn.example:1194 udp" in out
    assert out.endswith("2 imported\n")
    assert world("use", "b")[0] == 0
    _, out, _ = world("list")
    assert [line[0] for line in out.splitlines()] == [" ", "*"]
    _, out, _ = world("show", "a")
    assert "vpn.example port 1194" in out
    assert "up: no scripts are run" in out
    status, out, _ = world("set-credentials", "a", stdin="me\nhidden\n")
    assert status == 0
    assert "hidden" not in out
    assert json.loads(world("list", "--json")[1])["profiles"][0]["credentials"]
    assert "hidden" not in world("show", "a")[1]
    assert world("remove", "a", "b")[0] == 0
    assert names(world) == []


def test_a_bad_file_changes_nothing(world, files):
    (files / "c.ovpn").write_text("foo\nbar\n")
    status, _, err = world("import", files)
    assert status == 78
    assert "c.ovpn:1:1: unknown directive" in err
    assert "1 more" in err
    assert "nothing was imported" in err
    assert names(world) == []
    status, out, _ = world("import", "--skip-bad", files)
    assert status == 78
    assert out.endswith("2 imported\n")
    assert names(world) == ["a", "b"]


def test_the_same_again_gets_a_name_of_its_own(world, files):
    world("import", files / "a.ovpn")
    world("import", files / "a.ovpn")
    assert names(world) == ["a", "a-2"]
    world("import", "--replace", files / "a.ovpn")
    assert names(world) == ["a", "a-2"]


def test_a_name_that_is_given(world, files):
    assert world("import", "--name", "mine", files / "a.ovpn")[0] == 0
    assert names(world) == ["mine"]
    again = world("import", "--name", "mine", files / "a.ovpn")
    assert (again[0], "--replace" in again[2]) == (78, True)
    assert world("import", "--name", "x/y", files / "a.ovpn")[0] == 78
    assert world("import", "--name", "two", files)[0] in {64, 78}


def test_an_archive(world, tmp_path):
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as out:
        for number in range(20):
            out.writestr(f"x/{number}.ovpn", GOOD + "auth-user-pass login\n")
        out.writestr("x/login", "me\nhidden\n")
    status, out, _ = world("import", path)
    assert status == 0
    assert out.endswith("20 imported\n")
    stored = tmp_path / "store" / "profiles" / "7"
    assert "hidden" not in (stored / "profile.ovpn").read_text()
    assert (stored / "credentials").read_text() == "me\nhidden\n"


def test_a_damaged_profile_is_listed_as_one(world, files, tmp_path):
    world("import", files / "a.ovpn")
    kept = tmp_path / "store" / "profiles" / "a" / "profile.ovpn"
    kept.write_text("foo")
    assert "unknown directive" in world("list")[1]
    row = json.loads(world("list", "--json")[1])["profiles"][0]
    assert (row["ok"], row["server"]) == (False, None)
    assert world("show", "a")[0] == 78


def test_credentials_that_are_none(world, files):
    world("import", files / "a.ovpn")
    assert world("set-credentials", "a", stdin="\n\n")[0] == 64
    assert world("set-credentials", "a", stdin="only\n")[0] == 64
    assert world("set-credentials", "none", stdin="a\nb\n")[0] == 69


def test_a_password_is_asked_for_without_echo(world, files, tmp_path):
    world("import", files / "a.ovpn")
    pid, terminal = pty.fork()
    if not pid:
        import sys

        sys.stdin = sys.__stdin__ = os.fdopen(0)
        sys.stdout = os.fdopen(1, "w")
        base = ["profile", "--store", str(tmp_path / "store")]
        os._exit(main([*base, "set-credentials", "a"]))
    seen = os.read(terminal, 1000)
    os.write(terminal, b"me\n")
    while b"Password" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"hidden\n")
    assert os.waitpid(pid, 0)[1] == 0
    os.close(terminal)
    assert b"hidden" not in seen
    kept = tmp_path / "store" / "profiles" / "a" / "credentials"
    assert kept.read_text() == "me\nhidden\n"
