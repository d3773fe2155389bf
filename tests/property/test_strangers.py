"""What a stranger sends is a count in `drops`, and nothing else."""

import functools
from collections import deque
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.wire.opcode import DATA_OPCODES, Opcode, first_byte
from tests.unit.engine.pair import WRAPS, connected, pair

CONTROL = sorted(set(Opcode) - DATA_OPCODES)
CONTAINERS = (list, tuple, deque, set, frozenset)


@functools.cache
def world(wrap):
    """A session that carries traffic; it hears nothing but strangers."""
    return pair(wrap).until(connected, limit=10)


def everything(value, seen):
    """All that can be told of a value, and of all that hangs on it."""
    if isinstance(value, (int, float, str, bytes, bytearray, Enum, type(None))):
        return value
    if id(value) in seen:
        return "again"
    seen.add(id(value))
    each = functools.partial(everything, seen=seen)
    if isinstance(value, dict):
        return [(key, each(value[key])) for key in value]
    if isinstance(value, CONTAINERS):
        return [each(one) for one in value]
    if not type(value).__module__.startswith("qubes_vpn"):
        return id(value)
    names = [*getattr(value, "__dict__", ())]
    for kind in type(value).__mro__:
        names += getattr(kind, "__slots__", ())
    return [
        (name, each(getattr(value, name)))
        for name in names
        if name != "drops" and hasattr(value, name)
    ]


def told(engine):
    return everything(engine, set()), engine.deadline(), engine.poll()


@pytest.mark.parametrize("known", [False, True], ids=["any", "its-own"])
@pytest.mark.parametrize("wrap", WRAPS)
@given(
    opcode=st.sampled_from(CONTROL),
    key_id=st.integers(0, 7),
    session_id=st.binary(min_size=8, max_size=8),
    body=st.builds(
        lambda size, dice: dice.randbytes(size),
        st.integers(0, 1300),
        st.randoms(use_true_random=False),
    ),
    later=st.integers(0, 10),
)
def test_a_refused_packet_leaves_a_count(
    wrap, known, opcode, key_id, session_id, body, later
):
    if known and wrap == "plain":
        # who knows it there can say anything: rows P11 to P18
        body = b"\xff" + body
    here = world(wrap)
    engine = here.client
    if known:
        session_id = engine._channel.peer_session_id
    now = here.now
    now = type(now)(now.mono + later, now.unix + later)
    packet = bytes([first_byte(opcode, key_id)]) + session_id + body
    before, count = told(engine), sum(engine.drops.values())
    engine.receive(packet, now)
    assert told(engine) == before
    assert sum(engine.drops.values()) == count + 1


@pytest.mark.parametrize("wrap", [each for each in WRAPS if each != "plain"])
def test_what_was_heard_is_refused_when_it_comes_again(wrap):
    here = pair(wrap)
    engine = here.client
    begin = told(engine)
    here.until(connected, limit=10)
    before = told(engine)
    assert before != begin
    heard = [
        datagram
        for _, to_server, datagram in here.wire.seen
        if not to_server and datagram[0] >> 3 in CONTROL
    ]
    for datagram in heard:
        engine.receive(datagram, here.now)
    assert told(engine) == before
    assert engine.drops == {"replay": len(heard)}
