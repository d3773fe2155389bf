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
from qubes_vpn.qubes.profiles import Profiles
from qubes_vpn.qubes.qubesdb import PROFILE_NAME
from qubes_vpn.runtime.store import (
    credentials,
    kept,
    load,
    login_lines,
    name_for,
    notes,
)

FINGERPRINT = bytes(32)
PROFILE = ClientProfile(
    (Remote("vpn.example"),),
    ServerCheck(fingerprints=(FINGERPRINT,)),
    auth_user_pass=Credentials(),
)
LOGIN = Credentials("me", "secret")
WITH_LOGIN = replace(PROFILE, auth_user_pass=LOGIN)


@pytest.fixture
def store(tmp_path):
    return Profiles(tmp_path / "root", owner=os.geteuid())


def modes(path):
    return {
        one.relative_to(path).as_posix(): stat.S_IMODE(one.stat().st_mode)
        for one in [path, *path.rglob("*")]
    }


def test_an_empty_store(store):
    assert store.names() == ()
    assert store.current == ""


def test_what_is_added_is_there(store):
    store.add((kept("one", PROFILE), kept("two", WITH_LOGIN)))
    assert store.names() == ("one", "two")
    assert load(store, "one") == PROFILE
    assert credentials(store, "one") is None
    assert load(store, "two").auth_user_pass == LOGIN
    assert "secret" not in store.path("two").read_text()


def test_nobody_else_reads_it(store):
    before = os.umask(0)
    try:
        store.add((kept("one", WITH_LOGIN),))
        store.use("one")
    finally:
        os.umask(before)
    found = modes(store.folder)
    assert set(found.values()) == {0o700, 0o600}
    assert found["profiles/one/credentials"] == 0o600
    assert found["current"] == 0o600


def test_a_folder_that_was_open_is_closed(store):
    store.folder.mkdir(mode=0o755)
    store.add((kept("one", PROFILE),))
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


def test_replacing_keeps_the_credentials(store):
    store.add((kept("one", WITH_LOGIN),))
    other = replace(PROFILE, remotes=(Remote("other.example"),))
    store.add((kept("one", other),))
    assert load(store, "one").remotes[0].host == "other.example"
    assert credentials(store, "one") == LOGIN
    you = Credentials("you", "x")
    store.add([kept("one", replace(other, auth_user_pass=you))])
    assert credentials(store, "one") == Credentials("you", "x")


def test_the_current_profile(store):
    store.add((kept("one", PROFILE), kept("two", PROFILE)))
    store.use("one")
    assert store.current == "one"
    store.remove("two")
    assert store.current == "one"
    store.remove("one")
    assert store.current == ""
    assert store.names() == ()


def test_a_damaged_current_is_none(store):
    store.add((kept("one", PROFILE),))
    (store.folder / "current").write_text("../../etc\n")
    assert store.current == ""


def test_credentials_of_a_profile_that_wants_none_are_not_used(store):
    nobody = kept("one", replace(PROFILE, auth_user_pass=None))
    store.add([replace(nobody, login=login_lines(LOGIN))])
    with pytest.raises(ConfigError, match="who you are"):
        load(store, "one")


def test_set_credentials(store):
    store.add((kept("one", PROFILE),))
    store.set_credentials("one", login_lines(LOGIN))
    assert load(store, "one").auth_user_pass == LOGIN


@pytest.mark.parametrize(
    "name", ["none", "../one", "", ".", "..", "a/b", "x" * 49, ".one", "a\n"]
)
@pytest.mark.parametrize("verb", ["path", "use", "remove", "credentials"])
def test_names_that_are_none(store, name, verb):
    store.add((kept("one", PROFILE),))
    with pytest.raises(UnavailableError, match="no profile is named"):
        getattr(store, verb)(name)


def test_a_failure_on_the_way_changes_nothing(store):
    store.add((kept("one", WITH_LOGIN),))
    before = store.path("one").read_text()
    other = replace(PROFILE, remotes=(Remote("other.example"),))
    # The second cannot be written: its place is a file.
    (store.folder / "profiles" / f".two.{os.getpid()}.new").write_text("")
    with pytest.raises(OsRefusedError):
        store.add((kept("one", other), kept("two", other)))
    assert store.path("one").read_text() == before
    assert store.names() == ("one",)


def test_leftovers_of_a_crash_are_no_profiles(store):
    store.add((kept("one", PROFILE),))
    (store.folder / "profiles" / ".two.1.new").mkdir()
    (store.folder / "profiles" / "empty").mkdir()
    assert store.names() == ("one",)


def test_what_the_system_refuses_is_said(store):
    store.folder.write_text("not a folder")
    with pytest.raises(OsRefusedError):
        store.add((kept("one", PROFILE),))
    with pytest.raises(OsRefusedError):
        store.listed()
    # who only wants to know what there is, sees none
    assert store.names() == ()


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root")
def test_without_permission_it_is_unreadable(store):
    store.add((kept("one", PROFILE),))
    child = os.fork()
    if not child:
        os.setegid(65534)
        os.seteuid(65534)
        try:
            store.listed()
        except UnreadableError:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_notes_are_kept(store):
    noted = replace(PROFILE, notes=((3, "up", "no \x1bscripts"),))
    store.add((kept("one", noted),))
    assert notes(store, "one") == ("up: no \\x1bscripts",)
    assert load(store, "one") == PROFILE


def test_a_profile_s_password_moves_to_its_file():
    entry = kept("one", WITH_LOGIN)
    assert entry.login == b"me\nsecret\n"
    assert b"secret" not in entry.text
    assert kept("one", PROFILE).login == b""
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
    assert PROFILE_NAME.fullmatch(name)
