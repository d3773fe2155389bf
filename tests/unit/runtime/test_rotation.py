"""Which candidate comes next, and after how long."""

from ipaddress import ip_address

import pytest

from qubes_vpn.engine.effects import Ended
from qubes_vpn.policy.phase import Endpoint, Transport
from qubes_vpn.runtime.messages import Candidate
from qubes_vpn.runtime.rotation import BACKOFF_MAX, Rotation


def candidate(remote: int, last: int) -> Candidate:
    address = ip_address(f"192.0.2.{last}")
    return Candidate(remote, "host", Endpoint(address, Transport.UDP, 1194))


TWO_REMOTES = (candidate(0, 1), candidate(0, 2), candidate(1, 3))


@pytest.mark.parametrize(
    ("advance", "expected"), [("no", 0), ("addr", 1), ("remote", 2)]
)
def test_the_server_says_how_far_to_move(advance, expected):
    rotation = Rotation(TWO_REMOTES)
    rotation.failed(Ended("x", advance=advance))
    assert rotation.index == expected


def test_every_candidate_is_tried_before_any_twice():
    rotation = Rotation(TWO_REMOTES)
    seen = []
    for _ in range(6):
        seen.append(rotation.current)
        rotation.failed(Ended("x"))
    assert seen == list(TWO_REMOTES) * 2


def test_the_wait_doubles_by_the_pass_and_has_a_cap():
    rotation = Rotation(TWO_REMOTES[:1], retry=(1, 300))
    waits = [rotation.failed(Ended("x")) for _ in range(8)]
    assert waits == [1, 2, 4, 8, 16, BACKOFF_MAX, BACKOFF_MAX, BACKOFF_MAX]


def test_a_server_may_ask_for_a_longer_wait_and_never_a_shorter_one():
    rotation = Rotation(TWO_REMOTES, retry=(5, 30))
    assert rotation.failed(Ended("x", backoff=42.0)) == 42.0
    assert rotation.failed(Ended("x", backoff=1.0)) == 5.0


def test_success_starts_the_waits_again():
    rotation = Rotation(TWO_REMOTES[:1])
    for _ in range(4):
        rotation.failed(Ended("x"))
    rotation.succeeded()
    assert rotation.failed(Ended("x")) == 1.0


@pytest.mark.parametrize(
    ("lived", "wait"), [(0.0, 5), (4.9, 5), (5.1, 0), (600.0, 0)]
)
def test_what_was_connected_for_longer_than_the_wait_does_not_wait(lived, wait):
    rotation = Rotation(TWO_REMOTES[:1], retry=(5, 30), retry_max=1)
    assert rotation.failed(Ended("ping-restart"), lived) == wait
    assert rotation.exhausted == bool(wait)
    # the try that follows has no such merit
    assert rotation.failed(Ended("x")) >= 5


def test_a_wait_that_the_server_asked_for_is_kept():
    rotation = Rotation(TWO_REMOTES, retry=(5, 30))
    assert rotation.failed(Ended("x", backoff=2.0), lived=60.0) == 5.0
    assert rotation.failed(Ended("x", backoff=42.0), lived=60.0) == 42.0


def test_connect_retry_max_counts_passes():
    rotation = Rotation(TWO_REMOTES, retry_max=2)
    for _ in range(5):
        rotation.failed(Ended("x"))
        assert not rotation.exhausted
    rotation.failed(Ended("x"))
    assert rotation.exhausted


def test_one_remote_alone_is_tried_again():
    rotation = Rotation(TWO_REMOTES[:2])
    rotation.failed(Ended("x", advance="remote"))
    assert rotation.current.remote == 0
