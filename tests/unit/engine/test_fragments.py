"""Packets in pieces: in any order, incomplete, and wrong."""

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.engine.fragments import PACKETS_MAX, PATIENCE, Fragments
from qubes_vpn.errors import UntrustedInputError
from tests.unit.engine.packets import channels, ipv4


def piece(content, sequence, number, last=0):
    """A piece; last: the size of the others, for the last one."""
    flags = (2 if last else 1) | sequence << 2 | number << 10 | last // 4 << 15
    return flags.to_bytes(4) + content


PIECES = [
    piece(b"abcd" * 2, 7, 0),
    piece(b"efgh" * 2, 7, 1),
    piece(b"xyz", 7, 2, last=8),
]
PACKET = b"abcdabcdefghefghxyz"


def take(fragments, content, now=0.0):
    taken = fragments.take(memoryview(bytearray(content)), now)
    return None if taken is None else bytes(taken)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_order_will_do(order):
    fragments = Fragments()
    taken = [take(fragments, PIECES[number]) for number in order]
    assert taken == [None, None, PACKET]
    # and it begins anew with the same number
    assert [take(fragments, one) for one in PIECES][2] == PACKET


def test_whole_packets_are_in_one_piece():
    assert take(Fragments(), bytes(4) + b"abc") == b"abc"


def test_pieces_of_several_packets_do_not_mix():
    fragments = Fragments()
    for number, sequence in itertools.product(range(2), range(20)):
        content = bytes((sequence,)) * 8
        assert take(fragments, piece(content, sequence, number)) is None
    for sequence in range(20):
        whole = take(fragments, piece(b"end", sequence, 2, last=8))
        assert whole == bytes((sequence,)) * 16 + b"end"


def test_what_stays_incomplete_is_forgotten():
    fragments = Fragments()
    for sequence in range(200):
        take(fragments, piece(b"abcd", sequence, 0))
    assert len(fragments._packets) == PACKETS_MAX
    fragments = Fragments()
    take(fragments, PIECES[0], now=0.0)
    take(fragments, PIECES[1], now=0.0)
    assert take(fragments, PIECES[2], now=PATIENCE + 1) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        bytes(4),
        (3).to_bytes(4) + b"a test",
        (1 << 2).to_bytes(4) + b"whole, with a number",
        piece(b"abc", 1, 0),
        piece(b"", 1, 0),
        piece(b"abcdefghi", 1, 1, last=8),
        piece(b"abc", 1, 1)[:4] + b"abcde",
    ],
)
def test_wrong_pieces_are_refused(content):
    with pytest.raises(UntrustedInputError) as refused:
        take(Fragments(), content)
    assert refused.value.reason == "bad-fragment"


@given(st.lists(st.binary(max_size=24), max_size=60))
def test_no_bytes_do_more_than_be_refused(contents):
    fragments = Fragments()
    for content in contents:
        with contextlib.suppress(UntrustedInputError):
            take(fragments, content)
    assert len(fragments._packets) <= PACKETS_MAX


@pytest.mark.parametrize("compression", ["", "stub", "swap", "stub-v2"])
def test_both_framings_together(compression):
    client, server = channels(fragment=True, compression=compression)
    assert server.open(client.seal(ipv4(), 1.0), 1.0) == ipv4()
    assert not server.drops
