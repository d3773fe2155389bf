"""The profile store: whole or not at all, and for root alone."""

import os
import stat
from dataclasses import replace

import pytest

from qubes_vpn.config.model import (
    ClientProfile,
    Credentials,
    Remote,
    ServerCheck,
)
from qubes_vpn.errors import (
    ConfigError,
    OsRefusedError,
    UnavailableError,
    UnreadableError,
)
from qubes_vpn.runtime import store as stores
from qubes_vpn.runtime.store import Entry, Store, entry_of, name_for

FINGERPRINT = bytes(32)
PROFILE = ClientProfile(
    (Remote("vpn.example"),),
    ServerCheck(fingerprints=(FINGERPRINT,)),
    auth_user_pass=Credentials(),
)
LOGIN = Credentials("me", "secret")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "root")


def modes(path):
    return {
        one.relative_to(path).as_posix(): stat.S_IMODE(one.stat().st_mode)
        for one in [path, *path.rglob("*")]
    }


def test_an_empty_store(store):
    assert store.names() == ()
    assert store.current() is None


def test_what_is_added_is_there(store):
    store.add((Entry("one", PROFILE), Entry("two", PROFILE, LOGIN)))
    assert store.names() == ("one", "two")
    assert store.load("one") == PROFILE
    assert store.credentials("one") is None
    assert store.load("two").auth_user_pass == LOGIN
    assert "secret" not in store.text("two")


def test_nobody_else_reads_it(store):
    before = os.umask(0)
    try:
        store.add((Entry("one", PROFILE, LOGIN),))
        store.use("one")
    finally:
        os.umask(before)
    found = modes(store.root)
    assert set(found.values()) == {0o700, 0o600}
    assert found["profiles/one/credentials"] == 0o600
    assert found["current"] == 0o600


def test_a_folder_that_was_open_is_closed(store):
    store.root.mkdir(mode=0o755)
    store.add((Entry("one", PROFILE),))
    assert stat.S_IMODE(store.root.stat().st_mode) == 0o700


def test_replacing_keeps_the_credentials(store):
    store.add((Entry("one", PROFILE, LOGIN),))
    other = replace(PROFILE, remotes=(Remote("other.example"),))
    store.add((Entry("one", other),))
    assert store.load("one").remotes[0].host == "other.example"
    assert store.credentials("one") == LOGIN
    store.add((Entry("one", other, Credentials("you", "x")),))
    assert store.credentials("one") == Credentials("you", "x")


def test_the_current_profile(store):
    store.add((Entry("one", PROFILE), Entry("two", PROFILE)))
    store.use("one")
    assert store.current() == "one"
    store.remove("two")
    assert store.current() == "one"
    store.remove("one")
    assert store.current() is None
    assert store.names() == ()


def test_a_damaged_current_is_none(store):
    store.add((Entry("one", PROFILE),))
    (store.root / "current").write_text("../../etc\n")
    assert store.current() is None


def test_credentials_of_a_profile_that_wants_none_are_not_used(store):
    store.add((Entry("one", replace(PROFILE, auth_user_pass=None), LOGIN),))
    with pytest.raises(ConfigError, match="who you are"):
        store.load("one")


def test_set_credentials(store):
    store.add((Entry("one", PROFILE),))
    store.set_credentials("one", LOGIN)
    assert store.load("one").auth_user_pass == LOGIN


@pytest.mark.parametrize(
    "name", ["none", "../one", "", ".", "..", "a/b", "x" * 49, ".one", "a\n"]
)
@pytest.mark.parametrize("verb", ["text", "use", "remove", "load"])
def test_names_that_are_none(store, name, verb):
    store.add((Entry("one", PROFILE),))
    with pytest.raises(UnavailableError, match="no profile is named"):
        getattr(store, verb)(name)


def test_a_failure_on_the_way_changes_nothing(store):
    store.add((Entry("one", PROFILE, LOGIN),))
    before = store.text("one")
    other = replace(PROFILE, remotes=(Remote("other.example"),))
    # The second cannot be written: its place is a file.
    (store.root / "profiles" / f".two.{os.getpid()}.new").write_text("")
    with pytest.raises(OsRefusedError):
        store.add((Entry("one", other), Entry("two", other)))
    assert store.text("one") == before
    assert store.names() == ("one",)


def test_leftovers_of_a_crash_are_no_profiles(store):
    store.add((Entry("one", PROFILE),))
    (store.root / "profiles" / ".two.1.new").mkdir()
    (store.root / "profiles" / "empty").mkdir()
    assert store.names() == ("one",)


def test_what_the_system_refuses_is_said(store):
    store.root.write_text("not a folder")
    with pytest.raises(OsRefusedError):
        store.add((Entry("one", PROFILE),))
    with pytest.raises(OsRefusedError):
        store.names()


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root")
def test_without_permission_it_is_unreadable(store):
    store.add((Entry("one", PROFILE),))
    child = os.fork()
    if not child:
        os.setegid(65534)
        os.seteuid(65534)
        try:
            store.names()
        except UnreadableError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_notes_are_kept(store):
    noted = replace(PROFILE, notes=((3, "up", "no \x1bscripts"),))
    store.add((Entry("one", noted),))
    assert store.notes("one") == ("up: no \\x1bscripts",)
    assert store.load("one") == PROFILE


def test_a_profile_s_password_moves_to_its_file():
    entry = entry_of("one", replace(PROFILE, auth_user_pass=LOGIN))
    assert entry.credentials == LOGIN
    assert entry.profile.auth_user_pass == Credentials()
    assert entry_of("one", PROFILE).credentials is None
    assert "secret" not in repr(entry)


@pytest.mark.parametrize(
    ("title", "taken", "name"),
    [
        ("vpn", set(), "vpn"),
        ("US New York", set(), "US_New_York"),
        ("..", set(), "profile"),
        (".hidden", set(), "hidden"),
        ("é" * 3, set(), "_"),
        ("vpn", {"vpn"}, "vpn-2"),
        ("vpn", {"vpn", "vpn-2"}, "vpn-3"),
        ("x" * 90, set(), "x" * 48),
        ("x" * 90, {"x" * 48}, "x" * 46 + "-2"),
    ],
)
def test_names_are_made_from_titles(title, taken, name):
    assert name_for(title, taken) == name
    assert stores.NAME.fullmatch(name)
