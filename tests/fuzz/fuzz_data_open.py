"""Any data packet is a whole IP packet for the tun, or a counted drop.

As it came, and sealed with the right key around any content; with AEAD and
CBC, with every framing, and with static keys. Nothing is raised.
"""

from qubes_vpn.engine.inner import OCC_MAGIC, PING, check_ip
from qubes_vpn.wire.ip import parse_ip
from tests.unit.engine.packets import channels, ipv4, ipv6

KINDS = (
    {"cipher": "AES-256-GCM"},
    {"cipher": "CHACHA20-POLY1305", "peer_id": None},
    {"cipher": "AES-128-CBC", "digest": "SHA256"},
    {"cipher": "AES-256-GCM", "compression": "stub"},
    {"cipher": "AES-256-GCM", "compression": "swap"},
    {"cipher": "AES-256-GCM", "compression": "stub-v2"},
)
CLIENT, SERVER = channels()
SEEDS = (
    b"\0\0" + SERVER.seal(ipv4(), 0.0),
    b"\2\0" + channels(**KINDS[2])[1].seal(ipv4(), 0.0),
    b"\0\1" + ipv4(),
    b"\1\1" + ipv6(),
    b"\0\1\x45",
    b"\1\1\x60\0",
    b"\0\1" + PING,
    b"\2\1" + OCC_MAGIC + b"\6",
    b"\3\1" + b"\xfa" + ipv4(),
    b"\4\1" + b"\xfb" + ipv4()[1:] + b"\x45",
    b"\5\1" + b"\x50\0" + ipv4(),
    b"\5\1" + b"\x50\1" + ipv4(),
)
PAIRS = [channels(**kind) for kind in KINDS]


def one_input(data: bytes) -> None:
    """Open; the first byte says the kind, the second if it is sealed."""
    if len(data) < 2:
        return
    client, server = PAIRS[data[0] % len(PAIRS)]
    content = data[2:]
    datagram = content
    if data[1] & 1:
        # the server's own framing would hide what the peer can frame
        style, server.primary.style = server.primary.style, ""
        datagram = server.seal(content, 1.0)
        server.primary.style = style
    client.drops.clear()
    before = client.traffic.tun_bytes
    packet = client.open(datagram, 1.0)
    if packet is None:
        assert client.traffic.tun_bytes == before
        return
    assert not client.drops
    check_ip(memoryview(packet))
    parse_ip(packet)
    assert client.traffic.tun_bytes == before + len(packet)
    # the same again is a replay, whatever it was
    assert client.open(datagram, 1.0) is None
    assert client.drops == {"replay": 1}
