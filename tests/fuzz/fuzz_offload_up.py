"""Any read of the tun is cut into packets of one size, or is refused."""

import struct

import numpy as np

from qubes_vpn.dataplane.segment import VNET, SuperPacket, finish_checksum
from qubes_vpn.errors import UntrustedInputError
from tests.unit.dataplane.oracle import TCP, UDP, Packet

# A TCP header that says to be shorter than one is.
STUNTED = bytearray(Packet(b"x" * 90, mss=40).read())
STUNTED[VNET.size + 32] = 0x20
SEEDS = (
    *(
        Packet(b"payload " * 40, ipv6=ipv6, proto=proto, mss=mss).read()
        for ipv6 in (False, True)
        for proto in (TCP, UDP)
        for mss in (0, 100)
    ),
    bytes(STUNTED),
)


def one_input(data: bytes) -> None:
    """Take a read apart as the offload plane does."""
    if len(data) <= VNET.size:
        return
    packet = bytearray(data[VNET.size :])
    view, array = memoryview(packet), np.frombuffer(packet, np.uint8)
    vnet = struct.unpack_from("=BBHHHH", data)
    try:
        if not vnet[1]:
            finish_checksum(view, vnet[4], vnet[5])
            return
        cut = SuperPacket(view, array, vnet)
    except UntrustedInputError as error:
        assert error.reason == "tun-offload"
        return
    assert 0 < cut.count <= len(packet)
    total = 0
    head = cut.size - cut.mss
    out = np.zeros(cut.size + 64, np.uint8)
    for number in {0, cut.whole - 1, cut.count - 1} - {-1}:
        size = cut.fill(out, 32, cut.size, number, 1)
        assert head < size <= cut.size
        assert not out[:32].any()
        assert not out[32 + size :].any()
        total += size - head
        out[:] = 0
    assert total <= len(packet) - head
    payload = cut.whole * cut.mss + cut.tail
    assert payload == len(packet) - head
