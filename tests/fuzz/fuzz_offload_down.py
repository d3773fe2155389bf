"""Whatever comes decrypted, the tun gets those packets and no other.

Runs that are joined are cut into what came, byte for byte; what is no whole
IP packet is dropped and counted.
"""

import socket

from qubes_vpn.crypto.replay import ReplayWindow
from qubes_vpn.dataplane.offload import TUN_F_USO4, OffloadPlane
from qubes_vpn.engine.inner import check_ip
from qubes_vpn.errors import UntrustedInputError
from tests.unit.dataplane.oracle import TCP, UDP, Packet, cut_written
from tests.unit.engine.packets import channels

CLIENT, SERVER = channels()


def run(**fields) -> bytes:
    """Give a run of packets in the form that one_input reads."""
    packets = Packet(b"x" * 450, mss=150, **fields).cut()
    return b"".join(len(one).to_bytes(2) + one for one in packets)


SEEDS = (
    run(),
    run(proto=UDP),
    run(ipv6=True),
    run(ipv6=True, proto=UDP),
    run(proto=TCP, options=b"\x01" * 4) + run(),
    b"\0\x14" + b"\x45" + bytes(19) + b"\0\1\0" + run(),
)


def _plane():
    far, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    app, tun = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for each in (far, link, app, tun):
        each.setblocking(False)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    plane = OffloadPlane(link, tun.fileno(), CLIENT, offloads=TUN_F_USO4)
    return plane, far, app, (link, tun)


PLANE, FAR, APP, KEEP = _plane()


def written() -> list[bytes]:
    """Read what the tun was given."""
    out = []
    while True:
        try:
            out.append(APP.recv(1 << 17))
        except BlockingIOError:
            return out


def whole(packet: bytes) -> bool:
    """Tell what check_ip lets through."""
    try:
        check_ip(memoryview(packet))
    except UntrustedInputError:
        return False
    return True


def one_input(data: bytes) -> None:
    """Seal packets of (length 2, content) each, and pass them through."""
    SERVER.primary.sent = 0
    CLIENT.primary.incoming.window = ReplayWindow()
    CLIENT.drops.clear()
    packets = []
    at = 0
    while at + 2 < len(data) and len(packets) < 64:
        size = int.from_bytes(data[at : at + 2]) % 1500
        packets.append(data[at + 2 : at + 2 + size] or b"\0")
        at += 2 + size
    for packet in packets:
        FAR.send(SERVER.seal(packet, 1.0))
    assert PLANE.pump(0, 1.0) == []
    came = [part for each in written() for part in cut_written(each)]
    assert came == [one for one in packets if whole(one)]
    assert set(CLIENT.drops) <= {"not-ip", "bad-ip-length"}
    dropped = len(packets) - len(came)
    assert sum(CLIENT.drops.values()) == dropped
