"""The search for the largest packet of a path, with a peer of our making."""

import heapq
import itertools
import random

import pytest

from qubes_vpn.engine.inner import OCC_MAGIC
from qubes_vpn.engine.path_mtu import BASE, INTERVAL, PathMtu, answers
from qubes_vpn.engine.traffic import Traffic

OVERHEAD = 24
CEILING = 1448


class Path:
    """Carries packets up to `largest`; the peer does as OpenVPN does.

    off: the peer's idea of a packet's overhead, less the true one. loss: of
    each packet, each way.
    """

    def __init__(self, largest, *, off=0, loss=0.0, rtt=0.03, answers=True):
        self.up = self.down = largest
        self.off, self.loss, self.rtt, self.answers = off, loss, rtt, answers
        self.dice = random.Random(7)
        self.now = 100.0
        self.moved = 0
        self.sent = []
        self.coming = []
        self.order = itertools.count()
        self.search = PathMtu(CEILING, OVERHEAD, self.now)

    def run(self, seconds):
        end = self.now + seconds
        while self.now < end:
            due = min(self.search.deadline(), end)
            if self.coming:
                due = min(due, self.coming[0][0])
            self.now = max(due, self.now)
            while self.coming and self.coming[0][0] <= self.now:
                size = heapq.heappop(self.coming)[2]
                self.search.heard(3, size, self.now)
            for payload in self.search.expire(self.moved, self.now):
                self.take(payload)
        return self.search.found

    def take(self, payload):
        self.sent.append(payload)
        assert payload[:17] == OCC_MAGIC + b"\x02"
        wanted = int.from_bytes(payload[17:19])
        answer = max(wanted - OVERHEAD + self.off, 17)
        lost = self.dice.random() < self.loss or self.dice.random() < self.loss
        if (
            self.answers
            and not lost
            and len(payload) <= self.up
            and answer <= self.down
        ):
            when = self.now + self.rtt
            heapq.heappush(self.coming, (when, next(self.order), answer))


@pytest.mark.parametrize("off", [0, 3, -40])
@pytest.mark.parametrize("largest", [600, 1000, 1228, 1400, 1447, 1448])
def test_finds_what_the_path_carries(largest, off):
    path = Path(largest, off=off)
    found = path.run(10)
    assert largest - 4 <= found <= largest
    assert len(path.sent) < 120


def test_a_good_path_costs_two_packets():
    path = Path(1500)
    assert path.run(20) == CEILING
    assert len(path.sent) == 2


@pytest.mark.parametrize(
    ("largest", "answers", "unknown", "known"),
    [(1500, True, 0.02, 0.1), (1228, True, 0.1, 10), (1500, False, 1, 10)],
)
def test_it_says_when_the_first_look_is_over(largest, answers, unknown, known):
    path = Path(largest, answers=answers)
    path.run(unknown)
    assert not path.search.known
    path.run(known)
    assert path.search.known
    path.up = path.down = 800
    path.moved += 1
    path.run(INTERVAL + 1)
    assert path.search.known, "what was known stays in force meanwhile"


@pytest.mark.parametrize("way", ["up", "down"])
def test_one_narrow_way_is_enough(way):
    path = Path(1500)
    setattr(path, way, 1228)
    assert 1224 <= path.run(10) <= 1228


def test_a_slow_path_is_not_taken_for_a_narrow_one():
    assert Path(1500, rtt=0.9).run(30) == CEILING


@pytest.mark.parametrize("seed", range(20))
def test_loss_leaves_something_that_passes(seed):
    path = Path(1300, loss=0.2)
    path.dice.seed(seed)
    assert 500 <= path.run(20) <= 1300


def test_a_peer_that_does_not_answer_is_left_alone():
    path = Path(1500, answers=False)
    assert path.run(1000) == CEILING
    assert path.search.silent
    assert len(path.sent) == 10


def test_a_path_that_shrinks_is_noticed_while_it_is_used():
    path = Path(1500)
    path.run(1)
    path.up = path.down = 1228
    path.moved += 1
    assert 1224 <= path.run(2 * INTERVAL) <= 1228


def test_a_path_that_grows_is_noticed_later():
    path = Path(1228)
    path.run(10)
    path.up = path.down = 1500
    for _ in range(25):
        path.moved += 1
        path.run(INTERVAL)
    assert path.search.found == CEILING


def test_an_idle_tunnel_is_not_probed():
    path = Path(1500)
    path.run(2 * INTERVAL)
    before = len(path.sent)
    path.run(100 * INTERVAL)
    assert len(path.sent) == before


def test_a_path_that_is_gone_changes_nothing():
    path = Path(1500)
    path.run(1)
    path.answers = False
    path.moved += 1
    assert path.run(3 * INTERVAL) == CEILING
    assert not path.search.silent


def test_strange_answers_change_nothing():
    path = Path(1500)
    for opcode, size in itertools.product(range(8), (0, 17, 700, 65535)):
        path.search.heard(opcode, size, path.now)
    assert path.run(5) == CEILING
    assert BASE < CEILING


def test_requests_are_answered_as_openvpn_does():
    traffic = Traffic()
    for opcode, rest in ((2, b"\x05\0"), (2, b"\0\0"), (2, b"\xff\xff")):
        traffic.occ.append((opcode, 1280, rest))
    traffic.occ.extend([(2, 18, b"\0"), (0, 17, b""), (5, 21, b"ab")])
    made = answers(traffic)
    assert [len(one) for one in made] == [1280 - OVERHEAD, 17, 1500 - OVERHEAD]
    assert {one[:17] for one in made} == {OCC_MAGIC + b"\x03"}
    assert not traffic.occ
