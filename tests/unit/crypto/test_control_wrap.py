import json
from pathlib import Path

import pytest

from qubes_vpn.crypto.control_wrap import (
    EARLY_NEG_MASK,
    EARLY_NEG_START,
    METADATA_USER,
    PlainWrap,
    TlsAuthWrap,
    TlsCryptV2ClientWrap,
    TlsCryptV2ServerWrap,
    TlsCryptWrap,
    dynamic_tls_crypt_key,
    metadata_time,
    packet_id_of,
    split_wkc,
    timestamp_metadata,
    unwrap_client_key,
    wrap_client_key,
)
from qubes_vpn.errors import (
    AuthenticationError,
    LocalStateError,
    MalformedPacketError,
    UntrustedInputError,
)
from qubes_vpn.wire.control import ControlPacket
from qubes_vpn.wire.keyfile import (
    parse_client_key_v2,
    parse_server_key,
    parse_static_key,
)
from qubes_vpn.wire.opcode import Opcode

VECTORS = Path(__file__).parents[2] / "vectors"
HANDSHAKES = json.loads((VECTORS / "handshakes.json").read_text())
STATIC = parse_static_key((VECTORS / "keys/static.key").read_text())
V2_SERVER = parse_server_key((VECTORS / "keys/v2-server.key").read_text())
V2_CLIENT = parse_client_key_v2((VECTORS / "keys/v2-client.key").read_text())
V2_METADATA = parse_client_key_v2(
    (VECTORS / "keys/v2-client-metadata.key").read_text()
)
# When openvpn made v2-client.key.
MADE = 1795438021
NOW = 1_800_000_000.5


def pair(kind):
    """Return (client's wrap, server's wrap) as in the recorded handshakes."""
    match kind:
        case "plain":
            return PlainWrap(), PlainWrap()
        case "tls-auth":
            return (
                TlsAuthWrap(STATIC, 1, "SHA256"),
                TlsAuthWrap(STATIC, 0, "SHA256"),
            )
        case "tls-auth-both":
            return (
                TlsAuthWrap(STATIC, None, "SHA512"),
                TlsAuthWrap(STATIC, None, "SHA512"),
            )
        case "tls-crypt":
            return (
                TlsCryptWrap(STATIC, is_server=False),
                TlsCryptWrap(STATIC, is_server=True),
            )
        case _:
            return (
                TlsCryptV2ClientWrap(*V2_CLIENT),
                TlsCryptV2ServerWrap(V2_CLIENT.key),
            )


KINDS = list(HANDSHAKES)
AUTHENTICATED = KINDS[1:]


def packet(**changes):
    fields = {
        "opcode": Opcode.P_CONTROL_V1,
        "key_id": 0,
        "session_id": b"\x01" * 8,
        "acks": (1, 2),
        "peer_session_id": b"\x02" * 8,
        "packet_id": 7,
        "payload": b"tls record",
    }
    return ControlPacket(**(fields | changes))


def control_packets(kind):
    for sender, digits in HANDSHAKES[kind]:
        content = bytes.fromhex(digits)
        if content[0] >> 3 not in {6, 9}:
            yield sender, content


@pytest.mark.parametrize("kind", KINDS)
def test_every_packet_of_openvpns_handshake_unwraps(kind):
    client, server = pair(kind)
    receivers = {"client": server, "server": client}
    packets = [
        receivers[sender].unwrap(content, NOW)
        for sender, content in control_packets(kind)
    ]
    first = packets[0].opcode
    assert first == (
        Opcode.P_CONTROL_HARD_RESET_CLIENT_V3
        if kind == "tls-crypt-v2"
        else Opcode.P_CONTROL_HARD_RESET_CLIENT_V2
    )
    assert packets[1].opcode == Opcode.P_CONTROL_HARD_RESET_SERVER_V2
    assert len({p.session_id for p in packets}) == 2
    assert any(p.payload[:2] == b"\x16\x03" for p in packets)
    assert any(p.opcode == Opcode.P_ACK_V1 for p in packets)


@pytest.mark.parametrize("kind", AUTHENTICATED)
def test_openvpns_packets_replayed_are_refused(kind):
    _, server = pair(kind)
    contents = [c for sender, c in control_packets(kind) if sender == "client"]
    for content in contents:
        server.unwrap(content, NOW)
    for content in contents:
        with pytest.raises(AuthenticationError) as caught:
            server.unwrap(content, NOW)
        assert caught.value.reason == "replay"


@pytest.mark.parametrize("kind", KINDS)
def test_what_one_side_wraps_the_other_unwraps(kind):
    client, server = pair(kind)
    for sender, receiver in ((client, server), (server, client)):
        for value in (
            packet(),
            packet(acks=(), peer_session_id=None),
            packet(opcode=Opcode.P_ACK_V1, packet_id=None, payload=b""),
            packet(opcode=Opcode.P_CONTROL_SOFT_RESET_V1, key_id=7),
        ):
            datagram = sender.wrap(value, NOW)
            assert receiver.unwrap(datagram, NOW) == value


@pytest.mark.parametrize("kind", KINDS)
def test_the_overhead_is_what_the_wrap_adds(kind):
    client, _ = pair(kind)
    plain = PlainWrap().wrap(packet(), NOW)
    assert len(client.wrap(packet(), NOW)) == len(plain) + client.overhead


@pytest.mark.parametrize("kind", AUTHENTICATED)
def test_no_byte_may_change(kind):
    client, server = pair(kind)
    datagram = client.wrap(packet(), NOW)
    for place in range(len(datagram)):
        bad = bytearray(datagram)
        bad[place] ^= 0x10
        with pytest.raises(UntrustedInputError):
            server.unwrap(bytes(bad), NOW)
    assert server.unwrap(datagram, NOW) == packet()


@pytest.mark.parametrize("kind", KINDS)
def test_no_prefix_is_a_packet(kind):
    client, server = pair(kind)
    datagram = client.wrap(packet(payload=b""), NOW)
    for size in range(len(datagram)):
        with pytest.raises(UntrustedInputError):
            server.unwrap(datagram[:size], NOW)


@pytest.mark.parametrize("kind", AUTHENTICATED)
def test_a_packet_is_not_accepted_by_its_own_side(kind):
    client, _ = pair(kind)
    if kind == "tls-auth-both":
        return
    with pytest.raises(AuthenticationError) as caught:
        client.unwrap(client.wrap(packet(), NOW), NOW)
    assert caught.value.reason == "bad-hmac"


def test_tls_crypt_hides_the_payload_and_tls_auth_does_not():
    assert b"tls record" not in pair("tls-crypt")[0].wrap(packet(), NOW)
    assert b"tls record" in pair("tls-auth")[0].wrap(packet(), NOW)


def test_the_same_packet_never_looks_the_same():
    client, _ = pair("tls-crypt")
    assert len({client.wrap(packet(), NOW) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "truncated-header"),
        (b"\x20" + b"\x01" * 7, "truncated-header"),
        (b"\x00" * 20, "unknown-opcode"),
        (b"\x48" * 20, "not-control"),
        (b"\x30" * 20, "not-control"),
        (b"\x20" + bytes(20), "zero-session-id"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_headers_that_are_malformed(kind, datagram, reason):
    with pytest.raises(MalformedPacketError) as caught:
        pair(kind)[1].unwrap(datagram, NOW)
    assert caught.value.reason == reason


def test_tls_auth_needs_a_digest():
    with pytest.raises(LocalStateError):
        TlsAuthWrap(STATIC, 0, "none")


def test_packet_ids_start_anew_with_a_later_time():
    client, server = pair("tls-crypt")
    client._packet_ids._id = 0xFFFFFFFE
    client._packet_ids._time = int(NOW)
    ids = []
    for _ in range(3):
        datagram = client.wrap(packet(), NOW)
        ids.append((packet_id_of(datagram), datagram[13:17]))
        assert server.unwrap(datagram, NOW) == packet()
    now = int(NOW)
    assert ids == [
        (0xFFFFFFFF, now.to_bytes(4)),
        (1, (now + 1).to_bytes(4)),
        (2, (now + 1).to_bytes(4)),
    ]


def test_a_v2_client_says_that_it_knows_early_negotiation():
    client, server = pair("tls-crypt-v2")
    reset = packet(opcode=Opcode.P_CONTROL_HARD_RESET_CLIENT_V3)
    datagram = client.wrap(reset, NOW)
    assert packet_id_of(datagram) & EARLY_NEG_MASK == EARLY_NEG_START
    recorded = bytes.fromhex(HANDSHAKES["tls-crypt-v2"][0][1])
    assert packet_id_of(recorded) & EARLY_NEG_MASK == EARLY_NEG_START
    assert datagram.endswith(V2_CLIENT.wkc)
    assert recorded.endswith(V2_CLIENT.wkc)
    assert client.wkc_size == len(V2_CLIENT.wkc)
    assert server.unwrap(datagram, NOW) == reset


@pytest.mark.parametrize("keys", [V2_CLIENT, V2_METADATA])
def test_openvpns_wrapped_keys_open_and_close(keys):
    key, metadata = unwrap_client_key(V2_SERVER, keys.wkc)
    assert key == keys.key
    assert wrap_client_key(V2_SERVER, key, metadata) == keys.wkc


def test_metadata_is_a_time_or_a_users():
    _, metadata = unwrap_client_key(V2_SERVER, V2_METADATA.wkc)
    assert metadata == bytes((METADATA_USER,)) + b"qube 7"
    assert metadata_time(metadata) is None
    _, metadata = unwrap_client_key(V2_SERVER, V2_CLIENT.wkc)
    made = metadata_time(metadata)
    assert made == MADE
    assert timestamp_metadata(made + 0.5) == metadata


def test_a_wrapped_key_for_another_server_is_refused():
    with pytest.raises(AuthenticationError) as caught:
        unwrap_client_key(bytes(128), V2_CLIENT.wkc)
    assert caught.value.reason == "bad-wkc"


def test_no_byte_of_a_wrapped_key_may_change():
    for place in range(len(V2_CLIENT.wkc)):
        bad = bytearray(V2_CLIENT.wkc)
        bad[place] ^= 1
        with pytest.raises(AuthenticationError):
            unwrap_client_key(V2_SERVER, bytes(bad))


@pytest.mark.parametrize("length", [0, 1, 289, 1025, 30_000, 65_535])
def test_lengths_of_wrapped_keys_that_are_wrong(length):
    datagram = b"\x50" * 2000 + length.to_bytes(2)
    with pytest.raises(MalformedPacketError) as caught:
        split_wkc(datagram)
    assert caught.value.reason == "bad-wkc-length"
    with pytest.raises(MalformedPacketError):
        TlsCryptV2ServerWrap(V2_CLIENT.key).unwrap(datagram, NOW)


def test_a_wrapped_key_may_not_reach_into_the_header():
    with pytest.raises(MalformedPacketError):
        split_wkc(b"\x50" * 8 + V2_CLIENT.wkc)
    start, wkc = split_wkc(b"\x50" * 9 + V2_CLIENT.wkc)
    assert (start, wkc) == (b"\x50" * 9, V2_CLIENT.wkc)


def test_the_dynamic_key_is_mixed_with_the_static_one():
    ekm = bytes(range(256))
    assert dynamic_tls_crypt_key(ekm, None) == ekm
    mixed = dynamic_tls_crypt_key(ekm, STATIC)
    assert mixed == bytes(a ^ b for a, b in zip(ekm, STATIC, strict=True))
