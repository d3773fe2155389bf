"""No first packet makes a server keep anything but one with its cookie.

Each is an answer, a welcome or a drop; answers stay below what they answer,
but for a few; a welcome needs a cookie made for this very source.
"""

from dataclasses import replace
from ipaddress import ip_address
from random import Random

from qubes_vpn.engine.hello import Answer, Greeter, Source, Welcome
from qubes_vpn.errors import UntrustedInputError
from tests.unit.engine.test_server_hello import (
    HERE,
    KINDS,
    NOW,
    reset_packet,
    third,
)

NAMES = tuple(KINDS)
SEEDS = (
    *(
        bytes([number]) + make().wrap(reset_packet(reset), NOW.unix)
        for number, (_, make, reset, _) in enumerate(KINDS.values())
    ),
    *(b"\x04" + bytes(40), b"\x05", b"\x06\x01\x02", b"\x07" + bytes(9)),
)


def one_input(data: bytes) -> None:
    """Judge a packet as it is, or change one that has the cookie."""
    if not data:
        return
    profile, make, reset, control = KINDS[NAMES[data[0] % 4]]
    greeter = Greeter(
        replace(profile, connect_freq_initial=(5, 10)), Random(1).randbytes
    )
    changed = bytes(data[1:])
    if data[0] & 4:
        wrap = make()
        first = wrap.wrap(reset_packet(reset), NOW.unix)
        answer = greeter.judge(first, HERE, NOW)
        packet = wrap.unwrap(answer.datagram, NOW.unix)
        good = wrap.wrap(third(packet, control, packet_id=1), NOW.unix)
        assert isinstance(greeter.judge(good, HERE, NOW), Welcome)
        other = Source(0, ip_address("192.0.2.8"), HERE.port)
        _refused(greeter, good, other)
        mask = changed[: len(good)].ljust(len(good), b"\0")
        changed = bytes(a ^ b for a, b in zip(good, mask, strict=True))
    for _ in range(3):
        try:
            verdict = greeter.judge(changed, HERE, NOW)
        except UntrustedInputError as error:
            assert error.reason
            return
        if isinstance(verdict, Answer):
            assert len(verdict.datagram) <= 2 * len(changed)
        else:
            assert data[0] & 4


def _refused(greeter, datagram, source):
    try:
        greeter.judge(datagram, source, NOW)
    except UntrustedInputError as error:
        assert error.reason == "bad-cookie"
    else:
        raise AssertionError("a cookie for somebody else was good")
