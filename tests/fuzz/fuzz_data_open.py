"""Any data packet is a whole IP packet for the tun, or a counted drop.

As it came; sealed with the right key around any content; and, with CBC, with
any packet id, too. With AEAD and CBC, with epochs, with every framing, and
with static keys that have a direction and that have none. Nothing is raised.
"""

from qubes_vpn.crypto.cbc import CbcCipher, static_key_directions
from qubes_vpn.engine.inner import OCC_MAGIC, PING, check_ip
from qubes_vpn.wire.data import data_v2_header
from qubes_vpn.wire.ip import parse_ip
from tests.unit.engine.packets import channels, ipv4, ipv6, key_pair

STATIC_KEY = bytes(range(256))
PLAIN, SEALED, BY_HAND = range(3)


def static(cipher, digest, ours):
    """Fields of static-key mode. ours: our key direction."""
    encrypt, decrypt = static_key_directions(STATIC_KEY, ours, cipher, digest)
    return {
        "cipher": cipher,
        "digest": digest,
        "encrypt": encrypt,
        "decrypt": decrypt,
        "static": True,
        "began": 1.7e9,
    }


KINDS = (
    {"cipher": "AES-256-GCM"},
    {"cipher": "CHACHA20-POLY1305", "peer_id": None},
    {"cipher": "AES-128-CBC", "digest": "SHA256"},
    {"cipher": "AES-256-GCM", "compression": "stub"},
    {"cipher": "AES-256-GCM", "compression": "swap"},
    {"cipher": "AES-256-GCM", "compression": "stub-v2"},
    static("AES-256-CBC", "SHA256", 1),
    static("AES-128-CBC", "SHA1", None),
    {**static("AES-256-CBC", "SHA512", 0), "compression": "stub"},
    {"cipher": "AES-256-GCM", "epoch": True, "peer_id": 7},
)
CBC = [number for number, kind in enumerate(KINDS) if "digest" in kind]
BARE = [number for number, kind in enumerate(KINDS) if "static" in kind]
CLIENT, SERVER = channels()
IDS = bytes.fromhex("00000001 6553f100")
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
    *(
        bytes([number, PLAIN]) + channels(**KINDS[number])[1].seal(ipv4(), 0.0)
        for number in range(6, len(KINDS))
    ),
    *(bytes([number, SEALED]) + ipv4() for number in range(6, len(KINDS))),
    bytes([CBC[0], BY_HAND]) + IDS[:4] + ipv4(),
    *(bytes([number, BY_HAND]) + IDS + ipv4() for number in BARE),
    *(bytes([number, BY_HAND]) + IDS + b"\xfa" + ipv4() for number in BARE),
    *(bytes([number, BY_HAND]) + b"\xff" * 8 + ipv6() for number in CBC),
    *(bytes([number, BY_HAND]) + IDS[:7] for number in CBC),
)
PAIRS = [channels(**kind) for kind in KINDS]


def by_hand(kind, content: bytes) -> bytes:
    """Seal a content that has its packet id in it, or what should be one."""
    keys = key_pair(**kind)[1]
    cipher = CbcCipher(keys.cipher, keys.digest, keys.encrypt)
    header = b"" if keys.static else data_v2_header(0, keys.peer_id)
    return header + cipher.seal(content, bytes(16))


def one_input(data: bytes) -> None:
    """Open; the first byte says the kind, the second how it is sealed."""
    if len(data) < 2:
        return
    number, how = data[0] % len(KINDS), data[1] % 3
    client, server = PAIRS[number]
    content = data[2:]
    datagram = content
    if how == BY_HAND and number in CBC:
        # a packet id of one input would be the end of the ids of all others
        client, _ = channels(**KINDS[number])
        datagram = by_hand(KINDS[number], content)
    elif how != PLAIN:
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
