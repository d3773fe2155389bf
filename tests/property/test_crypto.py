"""Control wraps, replay windows and ciphers, for any bytes and orders."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.crypto.aead import CIPHERS, AeadCipher, InvalidTag, cipher_spec
from qubes_vpn.crypto.cbc import CbcCipher
from qubes_vpn.crypto.control_wrap import (
    PlainWrap,
    TlsAuthWrap,
    TlsCryptV2ClientWrap,
    TlsCryptV2ServerWrap,
    TlsCryptWrap,
    metadata_time,
    split_wkc,
    unwrap_client_key,
    wrap_client_key,
)
from qubes_vpn.crypto.keys import DirectionKeys
from qubes_vpn.crypto.replay import PairReplayWindow, ReplayWindow
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.control import ControlPacket
from qubes_vpn.wire.opcode import Opcode

KEY = bytes(range(256))
SERVER_KEY = bytes(range(100, 228))
WKC = wrap_client_key(SERVER_KEY, KEY, b"\x01" + bytes(8))
NOW = 1_800_000_000.0
WRAPS = {
    "plain": lambda: (PlainWrap(), PlainWrap()),
    "tls-auth": lambda: (TlsAuthWrap(KEY, 1), TlsAuthWrap(KEY, 0)),
    "tls-crypt": lambda: (
        TlsCryptWrap(KEY, is_server=False),
        TlsCryptWrap(KEY, is_server=True),
    ),
    "tls-crypt-v2": lambda: (
        TlsCryptV2ClientWrap(KEY, WKC),
        TlsCryptV2ServerWrap(KEY),
    ),
}


class SlowWindow:
    """What a replay window means, with a set; no time rule."""

    def __init__(self, size):
        self.size, self.seen = size, set()

    def accept(self, number):
        top = max(self.seen, default=0)
        if number < 1 or number in self.seen or top - number >= self.size:
            return False
        self.seen.add(number)
        return True


@given(
    st.integers(1, 80),
    st.lists(
        st.one_of(
            st.integers(0, 200),
            st.integers(2**32 - 100, 2**32 - 1),
        ),
        max_size=200,
    ),
)
def test_a_replay_window_does_what_the_slow_one_does(size, numbers):
    fast, slow = ReplayWindow(size, seconds=0), SlowWindow(size)
    for number in numbers:
        assert fast.accept(number, 0) == slow.accept(number)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 50), st.floats(0, 1e6))
    )
)
def test_no_pair_is_accepted_twice(pairs):
    window, accepted = PairReplayWindow(), set()
    for time, number, now in pairs:
        if window.accept(time, number, now):
            assert (time, number) not in accepted
            accepted.add((time, number))


@pytest.mark.parametrize("kind", WRAPS)
@given(data=st.data())
def test_any_datagram_is_a_packet_or_untrusted(kind, data):
    receiver = WRAPS[kind]()[data.draw(st.integers(0, 1))]
    first = data.draw(st.sampled_from([*range(0x18, 0x60, 8), 0, 255]))
    rest = data.draw(st.binary(max_size=400))
    with contextlib.suppress(UntrustedInputError):
        receiver.unwrap(bytes((first,)) + rest, NOW)
    with contextlib.suppress(UntrustedInputError):
        receiver.unwrap(rest, NOW)


@pytest.mark.parametrize("kind", WRAPS)
@given(
    opcode=st.sampled_from(
        sorted(set(Opcode) - {Opcode.P_DATA_V1, Opcode.P_DATA_V2})
    ),
    payload=st.binary(max_size=1500),
    packet_id=st.integers(0, 2**32 - 1),
)
def test_wraps_round_trip(kind, opcode, payload, packet_id):
    client, server = WRAPS[kind]()
    packet = ControlPacket(
        opcode, 3, b"s" * 8, (1,), b"p" * 8, packet_id, payload
    )
    if opcode is Opcode.P_ACK_V1:
        packet = ControlPacket(opcode, 3, b"s" * 8, (1,), b"p" * 8)
    assert server.unwrap(client.wrap(packet, NOW), NOW) == packet


@pytest.mark.parametrize("kind", list(WRAPS)[1:])
@given(data=st.data())
def test_a_changed_datagram_is_never_a_packet(kind, data):
    client, server = WRAPS[kind]()
    packet = ControlPacket(
        Opcode.P_CONTROL_V1, 0, b"s" * 8, packet_id=1, payload=b"payload"
    )
    datagram = bytearray(client.wrap(packet, NOW))
    place = data.draw(st.integers(0, len(datagram) - 1))
    datagram[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UntrustedInputError):
        server.unwrap(bytes(datagram), NOW)


@given(st.binary(max_size=400), st.integers(0, 65535))
def test_any_wrapped_key(content, length):
    with contextlib.suppress(UntrustedInputError):
        _, wkc = split_wkc(b"\x50" * 400 + content + length.to_bytes(2))
        unwrap_client_key(SERVER_KEY, wkc)


@given(st.binary(min_size=256, max_size=256), st.binary(max_size=600))
def test_client_keys_round_trip(key, metadata):
    wkc = wrap_client_key(SERVER_KEY, key, metadata)
    assert unwrap_client_key(SERVER_KEY, wkc) == (key, metadata)
    metadata_time(metadata)


@pytest.mark.parametrize(
    "name", [name for name, spec in CIPHERS.items() if spec.kind == "aead"]
)
@given(
    nonce=st.binary(min_size=12, max_size=12),
    plaintext=st.binary(max_size=1500),
    aad=st.binary(max_size=20),
    flip=st.integers(0, 10**6),
)
def test_aead_round_trips_and_refuses_changes(
    name, nonce, plaintext, aad, flip
):
    cipher = AeadCipher(name, DirectionKeys(b"k" * cipher_spec(name).key_size))
    sealed = bytearray(len(plaintext) + 16)
    cipher.seal(nonce, plaintext, aad, sealed)
    opened = bytearray(len(plaintext))
    cipher.open(nonce, sealed, aad, opened)
    assert opened == plaintext
    sealed[flip % len(sealed)] ^= 1
    with pytest.raises(InvalidTag):
        cipher.open(nonce, sealed, aad, opened)


@given(st.sampled_from(["SHA1", "SHA512", "none"]), st.binary(max_size=300))
def test_any_cbc_packet(digest, content):
    cipher = CbcCipher(
        "AES-256-CBC", digest, DirectionKeys(b"k" * 32, b"m" * 64)
    )
    with contextlib.suppress(UntrustedInputError):
        cipher.open(content)
    assert cipher.open(cipher.seal(content, b"i" * 16)) == content
