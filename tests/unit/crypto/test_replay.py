import pytest

from qubes_vpn.crypto.replay import PairReplayWindow, ReplayWindow


def test_each_id_is_accepted_once():
    window = ReplayWindow()
    assert [window.accept(n, 0) for n in (1, 2, 3, 2, 1, 3, 4)] == [
        True,
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert window.top == 4


def test_zero_is_never_accepted():
    assert not ReplayWindow().accept(0, 0)


@pytest.mark.parametrize(("behind", "accepted"), [(63, True), (64, False)])
def test_the_window_is_64_wide(behind, accepted):
    window = ReplayWindow()
    window.accept(1000, 0)
    assert window.accept(1000 - behind, 0) is accepted
    assert not window.accept(1000 - behind, 0)


@pytest.mark.parametrize("jump", [1, 63, 64, 65, 2**32 - 2])
def test_ids_before_a_jump_stay_seen(jump):
    window = ReplayWindow()
    assert window.accept(1, 0)
    assert window.accept(1 + jump, 0)
    assert not window.accept(1, 0)
    assert not window.accept(1 + jump, 0)


def test_ids_in_a_gap_are_accepted_after_the_jump():
    window = ReplayWindow(size=8)
    window.accept(1, 0)
    window.accept(6, 0)
    assert [window.accept(n, 0) for n in (2, 3, 4, 5)] == [True] * 4
    window.accept(100, 0)
    assert window.accept(93, 0)
    assert not window.accept(92, 0)


def test_ids_below_an_old_one_come_too_late():
    window = ReplayWindow(seconds=15)
    window.accept(10, 100)
    window.accept(20, 101)
    assert window.accept(9, 115)
    # 10 was the highest at 100, 20 at 101: both are over 15 s ago.
    assert not window.accept(8, 117)
    assert not window.accept(19, 118)
    assert window.accept(21, 118)


def test_without_a_time_rule_nothing_comes_too_late():
    window = ReplayWindow(seconds=0)
    window.accept(10, 0)
    assert window.accept(9, 10**9)


def test_what_is_kept_does_not_grow():
    window = ReplayWindow()
    for number in range(1, 10_000):
        assert window.accept(number, number / 10)
    assert len(window._marks) < 20
    assert window._bitmap.bit_length() <= 64


def test_a_later_time_starts_a_new_window():
    window = PairReplayWindow()
    assert window.accept(1000, 5, 0)
    assert not window.accept(1000, 5, 0)
    assert window.accept(1000, 4, 0)
    assert window.accept(1001, 1, 0)
    assert not window.accept(1000, 6, 0)
    assert not window.accept(1001, 1, 0)


def test_id_zero_with_a_later_time_changes_nothing():
    window = PairReplayWindow()
    assert window.accept(1000, 5, 0)
    assert not window.accept(2000, 0, 0)
    assert window.accept(1000, 6, 0)
