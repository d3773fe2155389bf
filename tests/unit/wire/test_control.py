import pytest

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.control import (
    ControlPacket,
    decode_body,
    decode_early_negotiation,
    encode_body,
    encode_early_negotiation,
)
from qubes_vpn.wire.opcode import Opcode

US = b"\x01" * 8
PEER = b"\x02" * 8


def packet(**changes):
    fields = {
        "opcode": Opcode.P_CONTROL_V1,
        "key_id": 0,
        "session_id": US,
        "packet_id": 5,
        "payload": b"tls",
    }
    return ControlPacket(**(fields | changes))


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (packet(), b"\0\0\0\0\x05tls"),
        (packet(payload=b""), b"\0\0\0\0\x05"),
        (
            packet(acks=(1, 2), peer_session_id=PEER),
            b"\x02\0\0\0\x01\0\0\0\x02" + PEER + b"\0\0\0\x05tls",
        ),
        (
            ControlPacket(
                Opcode.P_ACK_V1, 3, US, acks=(9,), peer_session_id=PEER
            ),
            b"\x01\0\0\0\x09" + PEER,
        ),
        (ControlPacket(Opcode.P_ACK_V1, 0, US), b"\0"),
    ],
)
def test_bodies_have_openvpns_layout(value, wire):
    assert encode_body(value) == wire
    assert decode_body(value.opcode, value.key_id, US, wire) == value


@pytest.mark.parametrize(
    ("opcode", "wire", "reason", "offset"),
    [
        (Opcode.P_CONTROL_V1, b"", "truncated-acks", 0),
        (Opcode.P_CONTROL_V1, b"\x09" + bytes(99), "too-many-acks", 0),
        (Opcode.P_CONTROL_V1, b"\xff" + bytes(2000), "too-many-acks", 0),
        (Opcode.P_CONTROL_V1, b"\x01" + bytes(11), "truncated-acks", 1),
        (Opcode.P_CONTROL_V1, b"\0\0\0\0", "truncated-packet-id", 1),
        (
            Opcode.P_CONTROL_V1,
            b"\x01" + bytes(15),
            "truncated-packet-id",
            13,
        ),
        (Opcode.P_ACK_V1, b"\x01" + bytes(13), "trailing-bytes", 13),
    ],
)
def test_bodies_that_are_malformed(opcode, wire, reason, offset):
    with pytest.raises(MalformedPacketError) as caught:
        decode_body(opcode, 0, US, wire)
    assert (caught.value.reason, caught.value.offset) == (reason, offset)


def test_eight_acks_are_the_most():
    value = packet(acks=tuple(range(8)), peer_session_id=PEER)
    assert decode_body(value.opcode, 0, US, encode_body(value)) == value


def test_a_payload_is_not_in_the_repr():
    assert "tls" not in repr(packet())


def test_a_server_asks_for_the_wrapped_key_with_openvpns_bytes():
    # OpenVPN 2 ssl_pkt.c:434
    assert encode_early_negotiation(resend_wkc=True) == b"\0\1\0\2\0\1"
    assert encode_early_negotiation(resend_wkc=False) == b""


@pytest.mark.parametrize(
    ("payload", "resend"),
    [
        (b"", False),
        (b"\0\1\0\2\0\1", True),
        (b"\0\1\0\2\0\2", False),
        (b"\0\1\0\2\xff\xff", True),
        (b"\0\7\0\3abc", False),
        (b"\0\7\0\3abc\0\1\0\2\0\1", True),
        (b"\0\7\0\0\0\1\0\2\0\1", True),
        # a later record that lacks the flag does not take it back
        (b"\0\1\0\2\0\1\0\1\0\2\0\0", True),
    ],
)
def test_early_negotiation(payload, resend):
    assert decode_early_negotiation(payload) is resend


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"\0", "truncated-tlv"),
        (b"\0\1\0", "truncated-tlv"),
        (b"\0\1\0\2\0", "truncated-tlv"),
        (b"\0\7\xff\xff", "truncated-tlv"),
        (b"\0\1\0\1\0", "bad-tlv-length"),
        (b"\0\1\0\4\0\0\0\1", "bad-tlv-length"),
    ],
)
def test_early_negotiation_that_is_malformed(payload, reason):
    with pytest.raises(MalformedPacketError) as caught:
        decode_early_negotiation(payload)
    assert caught.value.reason == reason
