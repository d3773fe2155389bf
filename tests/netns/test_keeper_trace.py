"""One transaction a layer, in their order, as the kernel tells of them.

Netlink notifications, heard beside the keeper: of the ruleset (every
transaction, with the tables that it touched) and of rules, routes and links.
Two queues do not tell which of two events was first when both are found
filled; such a trace is thrown away, and the whole is done again.
"""

import contextlib
import itertools
import os
import select
import socket
import sys
import threading

import pytest

from lab import netlink
from qubes_vpn.keeper import messages
from qubes_vpn.policy import routes
from tests.netns.toy import Rig, lock

LAYERS = {
    (1, "qubes_vpn"): "filter",
    (5, "qubes_vpn"): "uplink",
    (2, "qubes"): "agent",
    (10, "qubes"): "agent",
}
TRIES = 10
TABLE = routes.TABLE.to_bytes(4, sys.byteorder)


class AmbiguousError(Exception):
    """Both queues were filled: nobody knows which was first."""


@contextlib.contextmanager
def first_on_its_processor(other):
    """Share one with a process, and run before it: so none of it is missed.

    What it does wakes us, and it goes on when we wait for more.
    """
    before = os.sched_getaffinity(0), os.sched_getaffinity(other)
    one = {min(before[0])}
    for pid in (0, other):
        os.sched_setaffinity(pid, one)
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        os.sched_setaffinity(0, before[0])
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(other, before[1])


class Trace:
    """What happens in a namespace, in order, from here to `end`."""

    def __init__(self, namespace, keeper):
        self._keeper = keeper
        self._ruleset = netlink.listener(
            namespace, netlink.NETFILTER, netlink.RULESET
        )
        groups = netlink.ROUTING | netlink.LINKS
        self._routing = netlink.listener(namespace, netlink.ROUTE, groups)
        self._tables = set()
        self._seen = []

    def during(self, action):
        """Do it beside, listen until it is done, and give what happened."""
        self._forget()
        done, end = socket.socketpair()
        listening = threading.Event()

        def run():
            with end:
                listening.wait()
                action()

        worker = threading.Thread(target=run)
        worker.start()
        try:
            with first_on_its_processor(self._keeper):
                listening.set()
                return self._listen(done)
        finally:
            worker.join()
            done.close()

    def _listen(self, done):
        both = [self._ruleset, self._routing]
        while True:
            ready = select.select([*both, done], [], [], 30)[0]
            assert ready, "the keeper does not answer"
            if all(each in ready for each in both):
                raise AmbiguousError
            for sock in ready:
                if sock is self._ruleset:
                    self._read_ruleset()
                elif sock is self._routing:
                    self._read_routing()
            if ready == [done]:
                break
        seen, self._seen = self._seen, []
        return seen

    def _forget(self):
        for sock in (self._ruleset, self._routing):
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1, socket.MSG_DONTWAIT):
                    pass
        self._seen.clear()

    def _read_ruleset(self):
        for kind, payload in netlink.receive(self._ruleset):
            if kind == netlink.NEWGEN:
                assert len(self._tables) == 1, self._tables
                self._seen.append(self._tables.pop())
            elif kind >> 8 == netlink.NFTABLES:
                name = netlink.attributes(payload)[netlink.TABLE_NAME]
                table = name.rstrip(b"\0").decode()
                self._tables.add(LAYERS.get((payload[0], table), table))

    def _read_routing(self):
        for kind, payload in netlink.receive(self._routing):
            if kind == netlink.DELLINK:
                self._seen.append("device gone")
            elif kind in (*netlink.CAME, *netlink.GONE):
                found = netlink.attributes(payload, netlink.RTM_SIZE)
                if found[netlink.RTA_TABLE] == TABLE:
                    self._seen.append("routing")

    def close(self):
        self._ruleset.close()
        self._routing.close()


def one_each(seen, *repeated):
    """The order; what is more than one transaction is named in `repeated`."""
    for name in set(seen) - set(repeated):
        assert seen.count(name) == 1, f"{name} in {seen}"
    return [name for name, _ in itertools.groupby(seen)]


def unambiguous(lab, trace_of):
    """Trace with a keeper of its own, until the trace can be read."""
    lock(lab)
    for _ in range(TRIES):
        with Rig(lab) as rig:
            assert rig.status.phase == "blocked"
            trace = Trace(lab.vpn, rig.keepers()[0])
            try:
                return trace_of(rig, trace)
            except AmbiguousError:
                continue
            finally:
                trace.close()
    pytest.fail("the order could never be told")


def test_opening_and_closing_are_one_transaction_a_layer(lab):
    def trace_of(rig, trace):
        rig.adopt()
        rig.engine.request(messages.OpenTun())
        steps = (
            lambda: rig.engine.request(messages.OpenLink(0)),
            lambda: rig.engine.request(rig.configuration()),
            rig.forward,
            lambda: rig.engine.request(messages.CloseForwarding()),
            rig.forward,
            lambda: rig.engine.request(messages.Close()),
        )
        return [
            one_each(trace.during(step), "routing", "agent") for step in steps
        ]

    link, _, forward, pause, again, close = unambiguous(lab, trace_of)
    assert link == ["uplink", "agent", "filter"]
    # the uplink is open already
    assert forward == again == ["routing", "agent", "filter"]
    assert pause == ["filter", "agent", "routing"]
    assert close == ["filter", "agent", "routing", "uplink"]


def test_what_an_engine_leaves_goes_after_closing(lab):
    """Its device, with the packets in it, and its peer: closed before."""

    def trace_of(rig, trace):
        rig.connect()
        rig.pump.stop()
        return trace.during(lambda: ended(rig))

    def ended(rig):
        rig.engine.close()
        rig.wait_notice(messages.EngineLost)

    seen = one_each(
        unambiguous(lab, trace_of), "routing", "agent", "device gone"
    )
    closing = ["filter", "agent", "routing", "uplink"]
    assert seen[: len(closing)] == closing
    assert "device gone" in seen[len(closing) :]
