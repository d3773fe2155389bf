"""Hearing of files that changed."""

import select

import pytest

from qubes_vpn.system.inotify import Folders


@pytest.fixture
def folders(tmp_path):
    folders = Folders()
    folders.follow([tmp_path])
    yield folders
    folders.close()


def told(folders):
    """Whether there was something, once."""
    ready = bool(select.select([folders], [], [], 0)[0])
    folders.receive()
    assert not select.select([folders], [], [], 0)[0]
    return ready


def test_a_file_that_is_written_renamed_or_deleted_is_told(folders, tmp_path):
    assert not told(folders)
    path = tmp_path / "crl.pem"
    for change in (
        lambda: path.write_text("one"),
        lambda: path.write_text("two"),
        lambda: path.rename(tmp_path / "other"),
        (tmp_path / "other").unlink,
    ):
        change()
        assert told(folders)
        assert not told(folders)


def test_what_is_being_written_is_not_told(folders, tmp_path):
    with (tmp_path / "crl.pem").open("w") as stream:
        stream.write("half")
        stream.flush()
        assert not told(folders)
    assert told(folders)


def test_only_what_is_followed_is_told(folders, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    folders.follow([other, tmp_path / "missing"])
    (tmp_path / "file").write_text("")
    # the kernel says that a watch has ended
    told(folders)
    (tmp_path / "file").write_text("again")
    assert not told(folders)
    (other / "file").write_text("")
    assert told(folders)


def test_a_folder_that_was_made_anew_is_followed_again(folders, tmp_path):
    place = tmp_path / "profile"
    for _ in range(2):
        place.mkdir()
        folders.follow([place])
        told(folders)
        (place / "file").write_text("")
        assert told(folders)
        (place / "file").unlink()
        place.rmdir()


def test_without_inotify_nothing_is_told_and_nothing_fails(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("qubes_vpn.system.inotify._libc", NoInotify())
    folders = Folders()
    folders.follow([tmp_path])
    (tmp_path / "file").write_text("")
    assert not told(folders)
    folders.close()


class NoInotify:
    """The C library of a user who has too many of them."""

    def inotify_init1(self, flags):
        return -1

    def inotify_add_watch(self, *_):
        return -1
