"""The reliability layer alone, with a clock that only the test moves."""

import itertools
import math
import random

import pytest

from qubes_vpn.engine.reliable import (
    RECEIVE_WINDOW,
    SEND_WINDOW,
    Frame,
    Reliable,
)
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.opcode import Opcode

V1 = Opcode.P_CONTROL_V1


def fresh(**changes):
    return Reliable(**{"timeout": 2, "hand_window": 60, **changes})


def frame(packet_id, payload=b""):
    return Frame(packet_id, V1, payload)


def ids(frames):
    return [one.packet_id for one in frames]


def filled(count):
    layer = fresh()
    for number in range(count):
        layer.queue(V1, bytes([number]))
    return layer


def test_sends_no_more_than_the_window_holds():
    layer = filled(10)
    assert ids(layer.due(0)) == list(range(SEND_WINDOW))
    assert ids(layer.due(0)) == []


def test_the_window_moves_with_its_oldest_packet():
    layer = filled(10)
    list(layer.due(0))
    layer.acknowledge([1, 2])
    assert ids(layer.due(0)) == []
    layer.acknowledge([0])
    assert ids(layer.due(0)) == [6, 7, 8]


def test_resends_with_a_growing_but_bounded_delay():
    layer = filled(1)
    times, now = [], 0.0
    while now < 60:
        assert ids(layer.due(now)) == [0]
        times.append(now)
        now = layer.deadline()
    assert times[:4] == [0, 2, 6, 11]
    assert max(b - a for a, b in itertools.pairwise(times)) == 5


def test_the_backoff_never_exceeds_half_the_hand_window():
    layer = fresh(timeout=10, hand_window=8)
    layer.queue(V1, b"")
    list(layer.due(0))
    list(layer.due(10))
    assert layer.deadline() == 14


def test_resends_early_after_three_later_acks():
    layer = filled(5)
    list(layer.due(0))
    layer.acknowledge([1, 2])
    assert ids(layer.due(0.1)) == []
    layer.acknowledge([3])
    assert ids(layer.due(0.1)) == [0]


def test_a_repeated_ack_is_no_later_ack():
    layer = filled(3)
    list(layer.due(0))
    layer.acknowledge([2, 2, 2, 2])
    assert ids(layer.due(0.1)) == []


@pytest.mark.parametrize("unknown", [6, 2**31, 2**32 - 1])
def test_ignores_acks_of_what_was_never_sent(unknown):
    layer = filled(2)
    list(layer.due(0))
    layer.acknowledge([unknown] * 5)
    assert ids(layer.due(0.1)) == []
    assert not layer.empty


def test_hands_over_in_order():
    layer = fresh()
    for packet_id in (2, 0, 1):
        layer.receive(frame(packet_id, bytes([packet_id])))
    assert [layer.take().payload for _ in range(3)] == [b"\0", b"\1", b"\2"]
    assert layer.take() is None


def test_a_duplicate_is_acked_again_and_not_handed_over():
    layer = fresh()
    layer.receive(frame(0))
    assert layer.take_acks(8) == (0,)
    assert layer.take() is not None
    layer.receive(frame(0))
    assert layer.acks_pending
    assert layer.take_acks(8) == (0,)
    assert layer.take() is None


def test_the_first_copy_of_a_packet_counts():
    layer = fresh()
    layer.receive(frame(1, b"first"))
    layer.receive(frame(1, b"second"))
    layer.receive(frame(0))
    layer.take()
    assert layer.take().payload == b"first"


def test_accepts_only_what_the_window_holds():
    layer = fresh()
    layer.receive(frame(RECEIVE_WINDOW - 1))
    for packet_id in (RECEIVE_WINDOW, 10**6, 2**32 - 1):
        with pytest.raises(UntrustedInputError, match="outside-window"):
            layer.receive(frame(packet_id))
    assert layer.take_acks(8) == (RECEIVE_WINDOW - 1,)


def test_repeats_the_last_acks_behind_the_new_ones():
    layer = fresh()
    for packet_id in range(3):
        layer.receive(frame(packet_id))
    assert layer.take_acks(2) == (0, 1)
    assert layer.acks_pending
    assert layer.take_acks(4) == (2, 1, 0)
    assert not layer.acks_pending


def test_starts_at_one_after_resets_without_state():
    layer = fresh(first_id=1)
    layer.queue(V1, b"")
    assert ids(layer.due(0)) == [1]
    layer.receive(frame(1, b"x"))
    assert layer.take().payload == b"x"


def test_nothing_in_flight_is_no_deadline():
    assert fresh().deadline() == math.inf


@pytest.mark.parametrize("seed", range(20))
def test_all_arrives_in_order_over_a_bad_wire(seed):
    dice = random.Random(seed)
    sides = fresh(), fresh()
    sent = [dice.randbytes(4) for _ in range(40)]
    for payload in sent:
        sides[0].queue(V1, payload)
    got, wire, now = [], [], 0.0
    while not sides[0].empty:
        now += 0.25
        for me, side in enumerate(sides):
            wire.extend(
                (1 - me, one, side.take_acks(4)) for one in side.due(now)
            )
            if side.acks_pending:
                wire.append((1 - me, None, side.take_acks(8)))
        dice.shuffle(wire)
        wire = [one for one in wire if dice.random() > 0.3]
        wire += [one for one in wire if dice.random() < 0.1]
        for to, one, acks in wire:
            sides[to].acknowledge(acks)
            if one is not None:
                sides[to].receive(one)
        wire = []
        while (one := sides[1].take()) is not None:
            got.append(one.payload)
        assert now < 600
    assert got == sent
