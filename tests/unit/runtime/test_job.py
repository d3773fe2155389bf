"""The job that goes from the agent to the engine."""

import os

import pytest

from qubes_vpn.runtime.job import Job, RecordingReader, pack, unpack


def test_a_job_arrives_as_it_was_sent():
    job = Job("x.ovpn", "client\n", {"ca.pem": b"\x00\xff"}, "me", "secret")
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
