import pytest

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.framing import Deframer, frame

PACKETS = [b"a", b"bc" * 300, bytes(65535)]


def test_a_frame_is_the_length_and_the_packet():
    assert frame(b"abc") == b"\0\3abc"


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000, 100_000])
def test_packets_come_out_however_the_stream_is_cut(step):
    stream = b"".join(map(frame, PACKETS))
    deframer = Deframer()
    got = []
    for start in range(0, len(stream), step):
        got += deframer.feed(stream[start : start + step])
    assert got == PACKETS


@pytest.mark.parametrize("length", [0, 101, 65535])
def test_a_length_of_zero_or_too_much_is_refused(length):
    deframer = Deframer(maximum=100)
    assert deframer.feed(frame(bytes(100))) == [bytes(100)]
    with pytest.raises(MalformedPacketError) as caught:
        deframer.feed(length.to_bytes(2))
    assert caught.value.reason == "bad-frame-length"
