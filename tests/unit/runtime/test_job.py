"""The job that goes from the agent to the engine."""

import os

import pytest

from qubes_vpn.qubes.qubesdb import DnsChoice
from qubes_vpn.runtime.files import profile_reader, read_names
from qubes_vpn.runtime.job import Job, RecordingReader, pack, unpack


def test_a_job_arrives_as_it_was_sent():
    dns = DnsChoice("9.9.9.9", passthrough=True, block_dot=True)
    files = {"ca.pem": b"\x00\xff"}
    job = Job("x.ovpn", "client\n", files, "me", "secret", dns)
    assert unpack(pack(job)) == job
    job = Job("x.ovpn", "client\n", problems={"crl.pem": "gone"})
    assert unpack(pack(job)) == job


def test_nobody_can_change_it_on_the_way():
    descriptor = pack(Job("x", "text"))
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"evil", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_no_secret_is_in_its_repr():
    job = Job("x", "<key>hush</key>", {"k": b"hush"}, "me", "hush")
    assert "hush" not in repr(job)


def test_a_file_that_was_not_read_is_not_there():
    with pytest.raises(FileNotFoundError):
        Job("x", "").read_file("other")


def test_the_reader_reads_a_file_once():
    read = []

    def once(path: str) -> bytes:
        read.append(path)
        return b"data"

    reader = RecordingReader(once)
    assert reader("a") == reader("a") == b"data"
    assert read == ["a"]
    assert reader.files == {"a": b"data"}


def test_a_file_is_read_again_or_its_problem_is_kept(tmp_path):
    read = profile_reader(str(tmp_path / "p.ovpn"))
    (tmp_path / "crls").mkdir()
    job = Job("p.ovpn", "", {"ca": b"1", "crls/": b""})
    assert job.reread("crls/", read) == job
    (tmp_path / "crls" / "17").touch()
    changed = job.reread("crls/", read)
    assert changed.files == {"ca": b"1", "crls/": b"17\n"}
    (tmp_path / "crls" / "17").unlink()
    (tmp_path / "crls").rmdir()
    gone = changed.reread("crls/", read)
    assert gone.files == {"ca": b"1"}
    with pytest.raises(OSError, match=r"^No such file or directory$"):
        gone.read_file("crls/")
    assert gone.reread("crls/", lambda _: b"") == job


def test_a_folder_with_too_many_names(tmp_path):
    (tmp_path / "12").touch()
    assert read_names(tmp_path, 3) == b"12\n"
    with pytest.raises(OSError, match="holds over 2 bytes"):
        read_names(tmp_path, 2)
