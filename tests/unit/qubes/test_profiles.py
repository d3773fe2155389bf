import os
import stat

import pytest

from qubes_vpn.errors import (
    OsRefusedError,
    UnavailableError,
    UnreadableError,
)
from qubes_vpn.qubes.profiles import PROFILES_MAX, Choice, Profiles, choose


@pytest.fixture
def profiles(tmp_path):
    return Profiles(tmp_path / "qubes-vpn", owner=os.geteuid())


@pytest.mark.parametrize(
    ("wanted", "available", "current", "choice"),
    [
        ((), (), "", Choice()),
        ((), ("a",), "", Choice("a")),
        ((), ("a", "b"), "", Choice()),
        ((), ("a", "b"), "b", Choice("b")),
        ((), ("a",), "gone", Choice("a")),
        (("b", "a"), ("a", "b"), "", Choice("b")),
        (("x", "a"), ("a", "b"), "", Choice("a", ("x",))),
        (("a", "b"), ("a", "b"), "b", Choice("b")),
        # what was chosen in the qube does not get past what dom0 allows
        (("a",), ("a", "b"), "b", Choice("a")),
        (("x",), ("a",), "a", Choice("", ("x",))),
    ],
)
def test_the_choice(wanted, available, current, choice):
    assert choose(wanted, available, current) == choice


def test_what_is_stored_is_read_and_private(profiles, tmp_path):
    assert profiles.store("home", "client\n", "maria\nsecret\n")
    assert not profiles.store("home", "client\n# 2\n")
    assert profiles.names() == ("home",)
    path = profiles.path("home")
    assert path.read_text() == "client\n# 2\n"
    assert profiles.credentials("home").read_text() == "maria\nsecret\n"
    for each in (tmp_path / "qubes-vpn").rglob("*"):
        wanted = 0o700 if each.is_dir() else 0o600
        assert stat.S_IMODE(each.stat().st_mode) == wanted, each


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "x" * 49, "é"])
def test_a_name_cannot_lead_elsewhere(profiles, name):
    for use in (profiles.path, profiles.remove, profiles.use):
        with pytest.raises(UnavailableError, match="no profile is named"):
            use(name)
    with pytest.raises(ValueError, match="name"):
        profiles.store(name, "client\n")


def test_a_file_that_others_can_use_is_refused(profiles):
    profiles.store("home", "client\n", "a\nb\n")
    path = profiles.path("home")
    path.chmod(0o640)
    with pytest.raises(UnreadableError, match="chmod go="):
        profiles.path("home")
    path.chmod(0o600)
    path.parent.chmod(0o755)
    with pytest.raises(UnreadableError, match="others"):
        profiles.path("home")
    path.parent.chmod(0o700)
    path.with_name("credentials").chmod(0o604)
    with pytest.raises(UnreadableError):
        profiles.credentials("home")


def test_a_link_is_refused(profiles, tmp_path):
    profiles.store("home", "client\n")
    path = profiles.path("home")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnreadableError, match="link"):
        profiles.path("home")


def test_another_owner_is_refused(profiles, tmp_path):
    profiles.store("home", "client\n")
    stranger = Profiles(tmp_path / "qubes-vpn", owner=os.geteuid() + 1)
    with pytest.raises(UnreadableError):
        stranger.path("home")


def test_the_current_profile(profiles, tmp_path):
    assert profiles.current == ""
    profiles.store("home", "client\n")
    profiles.choose("home")
    assert Profiles(tmp_path / "qubes-vpn").current == "home"
    profiles.choose("")
    assert Profiles(tmp_path / "qubes-vpn").current == ""
    (tmp_path / "qubes-vpn/current").write_text("../../etc\n")
    assert profiles.current == ""


def test_a_folder_that_cannot_be_written_forgets_only(tmp_path):
    """A disposable with a read-only state: chosen until it ends."""
    blocked = tmp_path / "file"
    blocked.write_text("")
    profiles = Profiles(blocked / "qubes-vpn", owner=os.geteuid())
    profiles.choose("home")
    assert profiles.current == "home"
    assert profiles.names() == ()
    with pytest.raises(OsRefusedError, match="Not a directory"):
        profiles.store("home", "client\n")


def test_a_store_that_fails_leaves_no_half(profiles, monkeypatch, tmp_path):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OsRefusedError, match="No space"):
        profiles.store("home", "client\n")
    assert list((tmp_path / "qubes-vpn/profiles").iterdir()) == []


def test_there_is_a_limit(profiles):
    for number in range(PROFILES_MAX):
        folder = profiles.folder / "profiles" / f"p{number}"
        folder.mkdir(parents=True)
        (folder / "profile.ovpn").write_text("")
    with pytest.raises(OsRefusedError, match="4,097 profiles, and 4,096 is"):
        profiles.store("one-more", "client\n")
    profiles.store("p7", "client\n")


def test_a_stamp_shows_what_it_is_of(profiles):
    profiles.store("home", "client\n")
    profiles.store("work", "client\n")
    there, home = profiles.stamp(), profiles.stamp("home")
    profiles.set_credentials("home", b"me\nsecret\n")
    assert profiles.stamp("home") != home
    there, home = profiles.stamp(), profiles.stamp("home")
    profiles.set_credentials("work", b"me\nsecret\n")
    assert profiles.stamp("home") == home
    profiles.store("away", "client\n")
    assert profiles.stamp() != there
    there = profiles.stamp()
    profiles.use("away")
    assert profiles.stamp() != there
    assert profiles.stamp("home") != home, "the choice"


def test_changes_are_followed_in_few_folders(profiles):
    for name in ("a", "b", "c"):
        profiles.store(name, "client\n")
    folders = {path.parent for path in profiles.followed("b")}
    top = profiles.folder
    assert folders == {top, top / "profiles", top / "profiles" / "b"}


def test_remove(profiles):
    profiles.store("home", "client\n")
    profiles.remove("home")
    assert profiles.names() == ()
    with pytest.raises(UnavailableError):
        profiles.remove("home")
