"""The data channel: headers, slots, framing, and every kind of drop."""

import pytest

from qubes_vpn.engine import inner
from qubes_vpn.engine.data_channel import (
    PRIMARY,
    SECONDARY,
    DataChannel,
)
from qubes_vpn.engine.data_key import PACKET_ID_MAX
from qubes_vpn.engine.traffic import Traffic
from tests.unit.engine.packets import (
    channels,
    direction,
    ipv4,
    ipv6,
    key_pair,
)

AEAD = ("AES-128-GCM", "AES-192-GCM", "AES-256-GCM", "CHACHA20-POLY1305")
CBC = (
    ("AES-128-CBC", "SHA1"),
    ("AES-256-CBC", "SHA256"),
    ("AES-256-CBC", "SHA512"),
)


@pytest.mark.parametrize("peer_id", [None, 0, 5, 0xFFFFFE])
@pytest.mark.parametrize("cipher", AEAD)
@pytest.mark.parametrize("packet", [ipv4(), ipv6(), ipv4(b"")])
def test_aead_goes_round(cipher, peer_id, packet):
    client, server = channels(cipher, peer_id=peer_id)
    assert server.open(client.seal(packet, 1.0), 1.0) == packet
    assert client.open(server.seal(packet, 1.0), 1.0) == packet
    assert not client.drops
    assert not server.drops


@pytest.mark.parametrize("peer_id", [None, 5])
@pytest.mark.parametrize(("cipher", "digest"), CBC)
def test_cbc_goes_round(cipher, digest, peer_id):
    client, server = channels(cipher, digest=digest, peer_id=peer_id)
    for length in range(50):
        packet = ipv4(b"y" * length)
        assert server.open(client.seal(packet, 1.0), 1.0) == packet
    assert not server.drops


def test_the_aead_layout_is_openvpns():
    # Made with AESGCM by hand: header, packet id, tag, ciphertext.
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    client, _ = channels("AES-256-GCM", key_id=3, peer_id=0x010203)
    client.seal(ipv4(), 1.0)
    datagram = client.seal(ipv4(), 1.0)
    assert datagram[:8] == bytes.fromhex("4b010203 00000002")
    nonce = datagram[4:8] + b"\x0c" * 8
    assert (
        AESGCM(b"\x0a" * 32).decrypt(
            nonce, datagram[24:] + datagram[8:24], datagram[:8]
        )
        == ipv4()
    )


def test_v1_authenticates_the_packet_id_alone():
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    client, _ = channels("AES-128-GCM", key_id=1, peer_id=None)
    datagram = client.seal(ipv4(), 1.0)
    assert datagram[:5] == bytes.fromhex("31 00000001")
    nonce = datagram[1:5] + b"\x0c" * 8
    assert AESGCM(b"\x0a" * 16).decrypt(
        nonce, datagram[21:] + datagram[5:21], datagram[1:5]
    )


@pytest.mark.parametrize("cipher", ["AES-256-GCM", "AES-256-CBC"])
def test_a_replayed_packet_is_dropped(cipher):
    client, server = channels(cipher, digest="SHA256")
    datagram = client.seal(ipv4(), 1.0)
    assert server.open(datagram, 1.0)
    assert server.open(datagram, 1.0) is None
    assert server.drops == {"replay": 1}


def test_a_forgery_does_not_move_the_replay_window():
    client, server = channels()
    first = client.seal(ipv4(), 1.0)
    ahead = bytearray(client.seal(ipv4(), 1.0))
    ahead[4:8] = (100_000).to_bytes(4)
    assert server.open(bytes(ahead), 1.0) is None
    assert server.open(first, 1.0)


@pytest.mark.parametrize("cipher", ["AES-256-GCM", "AES-256-CBC"])
def test_any_flipped_bit_is_a_counted_drop(cipher):
    client, server = channels(cipher, digest="SHA256")
    datagram = client.seal(ipv4(), 1.0)
    # The CBC format does not authenticate the header.
    for index in range(0 if cipher.endswith("GCM") else 4, len(datagram)):
        forged = bytearray(datagram)
        forged[index] ^= 1
        assert server.open(bytes(forged), 1.0) is None, index
    drops = sum(server.drops.values())
    assert drops == len(datagram) - (0 if cipher.endswith("GCM") else 4)
    assert server.traffic.decrypt_failures >= drops - 4
    assert server.traffic.rx_packets == 0


@pytest.mark.parametrize("cipher", ["AES-256-GCM", "AES-256-CBC"])
def test_any_truncation_is_a_counted_drop(cipher):
    client, server = channels(cipher, digest="SHA256")
    datagram = client.seal(ipv4(b""), 1.0)
    for size in range(len(datagram)):
        assert server.open(datagram[:size], 1.0) is None
    assert sum(server.drops.values()) == len(datagram)


def test_an_unknown_key_id_is_dropped():
    _, server = channels()
    other, _ = channels(key_id=2)
    assert server.open(other.seal(ipv4(), 1.0), 1.0) is None
    assert server.drops == {"unknown-key": 1}


def test_a_control_packet_is_no_data():
    _, server = channels()
    assert server.open(b"\x20" + b"x" * 40, 1.0) is None
    assert server.drops == {"not-data": 1}


def test_without_a_key_nothing_is_sent():
    channel = DataChannel(Traffic())
    assert channel.seal(ipv4(), 1.0) == b""
    assert channel.drops == {"no-key": 1}
    assert channel.traffic.tx_packets == 0


def test_packet_ids_are_never_used_twice():
    client, server = channels()
    client.primary.sent = PACKET_ID_MAX - 1
    datagram = client.seal(ipv4(), 1.0)
    assert datagram[4:8] == b"\xff\xff\xff\xff"
    assert server.open(datagram, 1.0)
    assert client.seal(ipv4(), 1.0) == b""
    assert client.seal(ipv4(), 1.0) == b""
    assert client.drops == {"packet-ids-used-up": 2}


def test_a_secondary_key_opens_and_does_not_seal():
    client, server = channels()
    ours, theirs = key_pair(key_id=1, encrypt=direction("AES-256-GCM", 60))
    client.install(SECONDARY, ours)
    server.install(SECONDARY, theirs)
    assert client.seal(ipv4(), 1.0)[0] & 7 == 0
    server.swap()
    early = server.seal(ipv4(), 1.0)
    assert early[0] & 7 == 1
    assert client.open(early, 1.0)  # before we swapped
    client.swap()
    assert client.seal(ipv4(), 1.0)[0] & 7 == 1
    server.swap()
    late = server.seal(ipv4(), 1.0)
    assert client.open(late, 1.0)  # the old key still opens
    client.remove(SECONDARY)
    assert client.open(server.seal(ipv4(), 1.0), 1.0) is None
    assert client.drops == {"unknown-key": 1}


def test_pings_are_swallowed_and_seen():
    client, server = channels()
    assert server.open(client.seal(inner.PING, 7.0), 8.0) is None
    assert server.traffic.ping_seen
    assert server.traffic.rx_last == 8.0
    assert client.traffic.tx_last == 7.0
    assert server.traffic.tun_bytes == 0
    assert not server.drops


def test_a_goodbye_is_seen():
    client, server = channels()
    goodbye = inner.OCC_MAGIC + bytes([inner.OCC_EXIT])
    assert server.open(client.seal(goodbye, 1.0), 1.0) is None
    assert server.traffic.peer_exited
    assert not server.drops


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (b"\x00" * 40, "not-ip"),
        (b"\x75" * 40, "not-ip"),
        (b"\x45" * 10, "bad-ip-length"),
        (b"\x44" + ipv4()[1:], "bad-ip-length"),
        (ipv4()[:-1], "bad-ip-length"),
        (ipv6()[:-1], "bad-ip-length"),
        (ipv6()[:39], "bad-ip-length"),
    ],
)
def test_only_whole_ip_packets_reach_the_tunnel_device(packet, reason):
    client, server = channels()
    assert server.open(client.seal(packet, 1.0), 1.0) is None
    assert server.drops == {reason: 1}


def test_a_foreign_source_is_dropped():
    client, server = channels()
    server.sources = {b"\x0a\x08\x00\x02"}
    assert server.open(client.seal(ipv4(), 1.0), 1.0)
    foreign = ipv4(source=b"\x0a\x08\x00\x03")
    assert server.open(client.seal(foreign, 1.0), 1.0) is None
    assert server.drops == {"bad-source": 1}


@pytest.mark.parametrize(
    ("style", "framed"),
    [
        ("stub", b"\xfa" + ipv4()),
        ("lzo-rx", b"\xfa" + ipv4()),
        ("swap", b"\xfb" + ipv4()[1:] + ipv4()[:1]),
        ("lz4-rx", b"\xfb" + ipv4()[1:] + ipv4()[:1]),
        ("stub-v2", ipv4()),
        ("lz4-v2-rx", ipv4()),
    ],
)
def test_compression_stubs(style, framed):
    client, server = channels(compression=style)
    bare, _ = channels()
    assert server.open(client.seal(ipv4(), 1.0), 1.0) == ipv4()
    assert server.open(client.seal(inner.PING, 1.0), 1.0) is None
    assert server.traffic.ping_seen
    assert not server.drops
    _, other = channels(compression=style)
    assert other.open(bare.seal(framed, 1.0), 1.0) == ipv4()


@pytest.mark.parametrize(
    ("style", "content"),
    [
        ("stub", b"\x66" + ipv4()),
        ("stub", ipv4()),
        ("swap", b"\x69" + ipv4()),
        ("swap", b"\xfa" + ipv4()),
        ("stub-v2", b"\x50\x01" + ipv4()),
        ("stub-v2", b"\x50"),
    ],
)
def test_compressed_content_is_dropped(style, content):
    _, server = channels(compression=style)
    bare, _ = channels()
    assert server.open(bare.seal(content, 1.0), 1.0) is None
    assert server.drops == {"compressed": 1}


def test_v2_escapes_its_indicator():
    client, server = channels(compression="stub-v2")
    plain = memoryview(bytearray(inner.wrap("v2", b"\x50abc")))
    assert bytes(inner.unwrap("v2", plain)) == b"\x50abc"
    assert client.seal(b"\x50abc", 1.0)
    assert server.drops == {}


def test_traffic_counts_what_the_engine_needs():
    client, server = channels()
    datagram = client.seal(ipv4(), 3.0)
    server.open(datagram, 4.0)
    assert client.traffic.tx_packets == server.traffic.rx_packets == 1
    assert client.traffic.tx_bytes == len(datagram)
    assert server.traffic.rx_bytes == len(datagram)
    assert client.traffic.key_packets == 1
    assert client.traffic.key_blocks == 1 + len(ipv4()) // 16
    assert server.traffic.key_blocks == 1 + len(ipv4()) // 16
    assert server.traffic.tun_bytes == len(ipv4())


def test_no_key_is_printed():
    ours, _ = key_pair()
    channel = DataChannel(Traffic())
    channel.install(PRIMARY, ours)
    assert "0a0a" not in repr(ours) + repr(channel) + repr(channel.primary)
