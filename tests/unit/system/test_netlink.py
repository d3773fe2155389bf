"""A dump that the kernel itself says is not of one state."""

import errno
import struct

import pytest
from pyroute2.netlink import NETLINK_ROUTE, nlmsg
from pyroute2.netlink.nlsocket import Marshal

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.system import netlink

KIND, SEQUENCE = 24, 7
INTERRUPTED, MULTI = 0x10, 0x2


def part(kind, flags, payload=b""):
    size = 16 + len(payload)
    return (
        struct.pack("=IHHII", size, kind, flags | MULTI, SEQUENCE, 0) + payload
    )


def end(flags=0, status=0):
    return part(3, flags, struct.pack("=i", status))


@pytest.fixture
def ask(monkeypatch):
    """Give what makes a dump of these answers; the kernel's part is played."""
    answers = []

    class Socket:
        def __init__(self, protocol, **options):
            assert protocol == NETLINK_ROUTE
            assert options == {"ext_ack": True, "strict_check": True}

        def bind(self):
            pass

        def register_policy(self, policy):
            assert policy == {}

        def nlm_request(self, asked, kind, flags, callback):
            found = Marshal().parse(answers.pop(0), SEQUENCE, callback)
            return [each for each in found if each["header"]["type"] != 3]

    def dump(*given):
        answers.extend(given)
        return requests.dump("routes", KIND, nlmsg())

    monkeypatch.setattr(netlink, "NetlinkSocket", Socket)
    requests = netlink.Requests(NETLINK_ROUTE, {})
    dump.left = answers
    return dump


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
