"""Any stream is packets, as a naive reader has it, or is out of step.

However the stream is cut, and with at most one packet kept.
"""

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.framing import Deframer, frame

MAXIMUM = 300
SEEDS = (
    b"\3" + frame(b"abc") + frame(b"x" * 200),
    b"\1" + frame(b"a") + b"\0\0" + frame(b"b"),
    b"\7" + frame(b"y" * 300) + b"\1\x2d",
)


def naive(data: bytes) -> tuple[list[bytes], bool]:
    """Read packets one by one; tell if the stream went out of step."""
    packets = []
    while len(data) >= 2:
        size = int.from_bytes(data[:2])
        if not 0 < size <= MAXIMUM:
            return packets, True
        if len(data) < 2 + size:
            break
        packets.append(data[2 : 2 + size])
        data = data[2 + size :]
    return packets, False


def one_input(data: bytes) -> None:
    """Feed in pieces of the size that the first byte says."""
    if not data:
        return
    step, stream = data[0] % 64 + 1, data[1:]
    wanted, astray = naive(stream)
    deframer, packets = Deframer(MAXIMUM), []
    try:
        for at in range(0, len(stream), step):
            packets += deframer.feed(stream[at : at + step])
            assert len(deframer._buffer) < MAXIMUM + 2 + step
    except MalformedPacketError as error:
        assert error.reason == "bad-frame-length"
        assert astray
        assert packets == wanted[: len(packets)]
        return
    assert not astray
    assert packets == wanted
