"""How long a batch may wait before it is looked at."""

from types import SimpleNamespace

import pytest

from qubes_vpn.dataplane import receive

PERIOD = 0.0003


@pytest.fixture
def clock(monkeypatch):
    """A time that passes by sleeping alone, and by hand."""
    clock = SimpleNamespace(now=100.0, slept=[])

    def sleep(seconds):
        clock.slept.append(seconds)
        clock.now += seconds

    fake = SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep)
    monkeypatch.setattr(receive, "time", fake)
    return clock


def looks(clock, pace, count, *, packets, work):
    """Look `count` times; `packets` come between, and take `work` seconds."""
    for number in range(1, count + 1):
        pace.rest(number * packets)
        clock.now += work


def test_under_load_looks_are_a_period_apart(clock):
    pace = receive.Pace()
    looks(clock, pace, 20, packets=40, work=PERIOD / 3)
    # the first ones find out that there is load
    assert len(clock.slept) > 10
    assert clock.slept == pytest.approx([PERIOD * 2 / 3] * len(clock.slept))


def test_what_has_waited_long_enough_does_not_wait_again(clock):
    pace = receive.Pace()
    looks(clock, pace, 20, packets=100, work=PERIOD * 1.1)
    assert clock.slept == []


def test_without_load_nothing_waits(clock):
    pace = receive.Pace()
    looks(clock, pace, 100, packets=1, work=PERIOD / 2)
    assert clock.slept == []
