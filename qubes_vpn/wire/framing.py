"""Packets over TCP: each after its length, 2 bytes big-endian."""

from typing import Final

from qubes_vpn.errors import MalformedPacketError

LENGTH_SIZE: Final = 2
FRAME_MAX: Final = 0xFFFF


def frame(packet: bytes) -> bytes:
    """Return the packet with its length before it (1..65535 bytes)."""
    assert 0 < len(packet) <= FRAME_MAX
    return len(packet).to_bytes(LENGTH_SIZE) + packet


class Deframer:
    """Cuts a byte stream into packets; keeps at most one unfinished one."""

    def __init__(self, maximum: int = FRAME_MAX) -> None:
        """maximum: the largest packet that is accepted, in bytes."""
        self._maximum = maximum
        self._buffer = bytearray()

    def feed(self, untrusted: bytes) -> list[bytes]:
        """Take stream bytes; return the packets that they complete.

        Raises MalformedPacketError "bad-frame-length" for length 0 or above
        the maximum: the stream is out of step and must be closed.
        """
        buffer = self._buffer
        buffer += untrusted
        packets = []
        offset = 0
        while len(buffer) - offset >= LENGTH_SIZE:
            start = offset + LENGTH_SIZE
            length = int.from_bytes(buffer[offset:start])
            if not 0 < length <= self._maximum:
                raise MalformedPacketError("bad-frame-length", offset)
            if len(buffer) - start < length:
                break
            offset = start + length
            packets.append(bytes(buffer[start:offset]))
        del buffer[:offset]
        return packets
