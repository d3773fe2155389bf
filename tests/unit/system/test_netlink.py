"""A dump that the kernel itself says is not of one state, or has failed."""

import errno
import os
import struct

import pytest
from pyroute2.netlink import NETLINK_ROUTE, nlmsg
from pyroute2.netlink.nlsocket import Marshal

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.system import netlink

KIND, SEQUENCE = 24, 0xABCDEF01
INTERRUPTED, MULTI = 0x10, 0x2


def part(kind, flags, payload=b""):
    size = 16 + len(payload)
    return (
        struct.pack("=IHHII", size, kind, flags | MULTI, SEQUENCE, 0) + payload
    )


def end(flags=0, status=0):
    return part(3, flags, struct.pack("=i", status))


class Socket:
    """The kernel's part: it has an answer for each request."""

    def __init__(self, protocol, **options):
        assert protocol == NETLINK_ROUTE
        assert options == {"ext_ack": True, "strict_check": True}
        self.marshal = Marshal()
        self.readable = os.eventfd(1)
        self.answers = []
        self.waiting = b""

    def bind(self):
        pass

    def register_policy(self, policy):
        assert policy == {}

    def fileno(self):
        return self.readable

    def sendto(self, data, address):
        size, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        assert (size, kind, address) == (len(data), KIND, (0, 0))
        ours, theirs = struct.pack("=I", SEQUENCE), struct.pack("=I", sequence)
        before = struct.pack("=I", sequence - 1)
        late = end(status=-errno.EPERM).replace(ours, before)
        self.waiting = [late, self.answers.pop(0).replace(ours, theirs)]

    def recv(self, size):
        return self.waiting.pop(0)

    def close(self):
        os.close(self.readable)


@pytest.fixture
def ask(monkeypatch):
    """Give what makes a dump of these answers."""
    monkeypatch.setattr(netlink, "NetlinkSocket", Socket)
    requests = netlink.Requests(NETLINK_ROUTE, {})
    kernel = requests._sock

    def dump(*given):
        kernel.answers.extend(given)
        return requests.dump("routes", KIND, nlmsg())

    dump.left = kernel.answers
    yield dump
    requests.close()


@pytest.mark.parametrize(
    "torn",
    [
        part(KIND, INTERRUPTED) + end(),
        part(KIND, 0) + part(KIND, INTERRUPTED) + end(),
        part(KIND, 0) + end(INTERRUPTED),
    ],
    ids=["first", "last", "end"],
)
def test_it_is_asked_for_again(ask, torn):
    assert len(ask(torn, part(KIND, 0) * 3 + end())) == 3
    assert ask.left == []


def test_not_for_ever(ask):
    with pytest.raises(OsRefusedError, match="changes faster"):
        ask(*[part(KIND, INTERRUPTED) + end()] * 9)
    assert len(ask.left) == 4


def test_one_that_fails_in_the_middle_is_no_answer(ask):
    with pytest.raises(netlink.NetlinkError) as error:
        ask(part(KIND, 0) + end(status=-errno.EMSGSIZE))
    assert error.value.number == errno.EMSGSIZE
