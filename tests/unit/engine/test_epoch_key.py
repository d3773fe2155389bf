"""Data keys with epochs: the format of OpenVPN 2.7, and moving on."""

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from qubes_vpn.crypto.keys import DataKeys, DirectionKeys
from qubes_vpn.crypto.prf import epoch_keys, next_epoch
from qubes_vpn.engine import epoch_key
from qubes_vpn.engine.data_channel import OVERHEAD_MAX, DataChannel
from qubes_vpn.engine.epoch_key import EpochKey
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import UntrustedInputError
from tests.unit.engine.packets import ipv4

CIPHER = "AES-256-GCM"
OURS, THEIRS = b"\x01" * 32, b"\x02" * 32


def keys(*, client=True, cipher=CIPHER):
    ours, theirs = DirectionKeys(OURS), DirectionKeys(THEIRS)
    both = (ours, theirs) if client else (theirs, ours)
    return DataKeys(3, 0x010203, cipher, *both, epoch=True)


def channels(**more):
    made = DataChannel(Traffic()), DataChannel(Traffic())
    for channel, client in zip(made, (True, False), strict=True):
        channel.install(0, keys(client=client, **more))
    return made


def secret_of(number, secret=THEIRS):
    for _ in range(number - 1):
        secret = next_epoch(secret)
    return secret


def from_peer(number, packet_id, payload=b"x"):
    """A packet of an epoch, made by hand."""
    derived = epoch_keys(secret_of(number), CIPHER)
    head = bytes.fromhex("4b010203") + number.to_bytes(2)
    head += packet_id.to_bytes(6)
    nonce = bytes(
        a ^ b
        for a, b in zip(head[4:] + bytes(4), derived.implicit_iv, strict=True)
    )
    return head + AESGCM(derived.cipher_key).encrypt(nonce, payload, head)


def take(key, datagram):
    """Open; the slug of the refusal, or the content."""
    buffer = bytearray(datagram) + bytes(16)
    out = memoryview(bytearray(len(datagram)))
    try:
        size = key.open_into(memoryview(buffer), len(datagram), 4, out, 1.0)
    except UntrustedInputError as error:
        return error.reason
    return bytes(out[:size])


def seal(key, payload=b"y"):
    out = memoryview(bytearray(len(payload) + OVERHEAD_MAX))
    return bytes(out[: key.seal_into(memoryview(payload), out)])


def epoch_of(datagram):
    return int.from_bytes(datagram[4:6])


@pytest.mark.parametrize("cipher", [CIPHER, "AES-128-GCM", "CHACHA20-POLY1305"])
def test_goes_round(cipher):
    client, server = channels(cipher=cipher)
    for _ in range(3):
        assert server.open(client.seal(ipv4(), 1.0), 1.0) == ipv4()
        assert client.open(server.seal(ipv4(), 1.0), 1.0) == ipv4()
    assert not client.drops
    assert client.traffic.key_epoch == 1
    replayed = client.seal(ipv4(), 1.0)
    assert server.open(replayed, 1.0)
    assert server.open(replayed, 1.0) is None
    assert server.drops == {"replay": 1}


def test_the_layout_is_openvpns():
    key = EpochKey(keys())
    assert take(key, from_peer(1, 1, b"content")) == b"content"
    datagram = seal(key)
    assert datagram[:12].hex() == "4b010203" + "0001" + "000000000001"
    assert len(datagram) == 12 + 1 + 16


# P58: which epochs are taken from the peer, whose last one was 10.
@pytest.mark.parametrize(
    ("number", "outcome"),
    [
        (10, b"x"),
        (11, b"x"),
        (14, b"x"),  # the whole window (CVE-2025-15497)
        (15, "unknown-epoch"),
        (0, "unknown-epoch"),
        (9, b"x"),  # the one that retires
        (8, "unknown-epoch"),
        (0xFFFF, "unknown-epoch"),
    ],
)
def test_epochs_near_the_peers_are_taken(number, outcome):
    key = EpochKey(keys())
    for step in (5, 9, 10):
        assert take(key, from_peer(step, 1)) == b"x"
    if number == 0:
        datagram = from_peer(1, 7)
        datagram = datagram[:4] + bytes(2) + datagram[6:]
    else:
        datagram = from_peer(number, 7)
    assert take(key, datagram) == outcome
    assert epoch_of(seal(key)) == max(10, number if outcome == b"x" else 0)


def test_we_follow_and_never_go_back():
    key = EpochKey(keys())
    assert epoch_of(seal(key)) == 1
    assert take(key, from_peer(5, 1)) == b"x"
    assert epoch_of(seal(key)) == 5
    assert take(key, from_peer(1, 1)) == b"x"  # late, of the retired epoch
    assert take(key, from_peer(1, 1)) == "replay"
    assert epoch_of(seal(key)) == 5
    assert take(key, from_peer(9, 1)) == b"x"
    assert take(key, from_peer(1, 2)) == "unknown-epoch"


def test_a_forged_epoch_moves_nothing():
    key = EpochKey(keys())
    forged = bytearray(from_peer(2, 1))
    forged[-1] ^= 1
    assert take(key, bytes(forged)) == "bad-tag"
    assert epoch_of(seal(key)) == 1
    assert take(key, from_peer(1, 1)) == b"x"


def test_the_end_of_the_epochs_is_not_followed():
    key = EpochKey(keys())
    last = epoch_key._Epoch(0xFFF9, OURS, CIPHER)
    key._current.epoch, key._future = last, []
    key._look_ahead()
    assert key._find(0xFFFA) is not None
    assert key._find(0xFFFB) is None
    key._current.epoch = epoch_key._Epoch(0xFFFE, OURS, CIPHER)
    key._look_ahead()
    assert [one.epoch.number for one in key._future] == [0xFFFF]
    assert key._find(0xFFFF) is None


def test_a_worn_out_key_gives_way_to_the_next_epoch():
    key = EpochKey(keys())
    key._limit = 10
    seen = [seal(key, b"z" * 32)[4:12] for _ in range(9)]
    assert len(set(seen)) == 9
    epochs = [int.from_bytes(one[:2]) for one in seen]
    assert epochs == [1, 1, 1, 1, 2, 2, 2, 2, 3]


def test_a_peer_that_overuses_its_key_is_shown_the_next():
    key = EpochKey(keys())
    key._limit = 10
    for number in range(1, 7):
        take(key, from_peer(1, number, b"z" * 16))
    assert epoch_of(seal(key)) == 2
    for number in range(7, 20):
        take(key, from_peer(1, number))
    assert epoch_of(seal(key)) == 2


def test_ids_and_epochs_end():
    key = EpochKey(keys())
    key.sent = epoch_key.COUNTER_MAX
    assert seal(key)[4:12].hex() == "0002" + "000000000001"
    key._sending = epoch_key._Epoch(0xFFFF, OURS, CIPHER)
    key.sent = epoch_key.COUNTER_MAX
    assert seal(key) == b""


@pytest.mark.parametrize("size", range(30))
def test_short_packets_are_refused(size):
    whole = from_peer(1, 1)
    key = EpochKey(keys())
    if size < len(whole):
        assert take(key, whole[:size]) == (
            "short-data" if size < 29 else "bad-tag"
        )
