"""Wire codecs: round trips, and no surprise for any bytes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire import control, framing, key_method, keyfile, messages
from qubes_vpn.wire.ip import parse_ip
from qubes_vpn.wire.opcode import DATA_OPCODES, Opcode, split_first_byte

CONTROL_OPCODES = sorted(set(Opcode) - DATA_OPCODES)
uint32 = st.integers(0, 2**32 - 1)
session_ids = st.binary(min_size=8, max_size=8).filter(any)
texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
    max_size=200,
)


@st.composite
def control_packets(draw):
    opcode = draw(st.sampled_from(CONTROL_OPCODES))
    acks = tuple(draw(st.lists(uint32, max_size=8)))
    is_ack = opcode is Opcode.P_ACK_V1
    return control.ControlPacket(
        opcode,
        draw(st.integers(0, 7)),
        draw(session_ids),
        acks,
        draw(session_ids) if acks else None,
        None if is_ack else draw(uint32),
        b"" if is_ack else draw(st.binary(max_size=2000)),
    )


@given(control_packets())
def test_control_bodies_round_trip(packet):
    body = control.encode_body(packet)
    decoded = control.decode_body(
        packet.opcode, packet.key_id, packet.session_id, body
    )
    assert decoded == packet


@given(st.sampled_from(CONTROL_OPCODES), st.binary(max_size=300))
def test_a_body_has_one_encoding(opcode, body):
    with contextlib.suppress(UntrustedInputError):
        packet = control.decode_body(opcode, 0, b"s" * 8, body)
        assert control.encode_body(packet) == body


@given(st.binary(max_size=300))
def test_any_early_negotiation(payload):
    with contextlib.suppress(UntrustedInputError):
        control.decode_early_negotiation(payload)


@given(st.integers(0, 255))
def test_any_first_byte(byte):
    with contextlib.suppress(UntrustedInputError):
        split_first_byte(byte)


@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=20),
    st.lists(st.integers(1, 400), min_size=1),
)
def test_frames_round_trip_however_they_are_cut(packets, steps):
    stream = b"".join(map(framing.frame, packets))
    deframer, got, start = framing.Deframer(), [], 0
    while start < len(stream):
        step = steps[len(got) % len(steps)]
        got += deframer.feed(stream[start : start + step])
        start += step
    assert got == packets


@given(st.binary(max_size=500), st.integers(1, 70_000))
def test_any_stream(stream, maximum):
    deframer = framing.Deframer(maximum)
    with contextlib.suppress(UntrustedInputError):
        packets = deframer.feed(stream)
        assert (
            b"".join(map(framing.frame, packets))
            == stream[: sum(len(packet) + 2 for packet in packets)]
        )


@given(
    st.sampled_from([64, 112]).flatmap(
        lambda size: st.binary(min_size=size, max_size=size)
    ),
    st.lists(texts, min_size=4, max_size=4),
)
def test_key_method_messages_round_trip(entropy, strings):
    source = key_method.KeySource.from_entropy(entropy)
    strings[0] = strings[0][:120]
    message = key_method.KeyMethodMessage(source, *strings)
    wire = key_method.encode_key_method(message)
    decoded = key_method.decode_key_method(
        wire, from_client=len(entropy) == 112
    )
    assert decoded == message


@given(
    st.binary(max_size=300),
    st.booleans(),
    st.sampled_from([b"", bytes(4) + b"\x02" + bytes(112)]),
)
def test_any_key_method_message(rest, from_client, head):
    with contextlib.suppress(UntrustedInputError):
        message = key_method.decode_key_method(
            head + rest, from_client=from_client
        )
        message.peer_info_pairs()
        assert key_method.encode_key_method(message)


WORDS = st.sampled_from(
    [
        *b"PUSH_REPLY PUSH_UPDATE AUTH_FAILED AUTH_PENDING INFO".split(),
        *b"INFO_PRE CR_RESPONSE EXIT RESTART HALT TEMP [ ] : , CRV1:".split(),
        b"backoff ",
        b"advance ",
        b"timeout ",
        b"push-continuation 1",
        b"\0",
        b"\r\n",
    ]
)


@given(st.lists(st.one_of(WORDS, st.binary(max_size=20))).map(b"".join))
def test_any_record_is_messages(record):
    for message in messages.parse_messages(record):
        assert "\0" not in repr(message)


@given(
    st.lists(
        st.text(
            st.characters(
                min_codepoint=32,
                max_codepoint=126,
                exclude_characters=",",
            ),
            min_size=1,
        ).filter(lambda option: "push-continuation" not in option)
    ),
    st.sampled_from([0, 1, 2]),
)
def test_push_replies_round_trip(options, continuation):
    wire = messages.encode_push("PUSH_REPLY", tuple(options), continuation)
    expected = messages.PushReply(tuple(options), continuation)
    assert messages.parse_messages(wire) == [expected]


@given(
    st.one_of(
        st.binary(max_size=100),
        st.tuples(
            st.sampled_from([b"\x45\0\0", b"\x60\0\0\0\0"]),
            st.binary(max_size=100),
        ).map(b"".join),
    )
)
def test_any_inner_packet(packet):
    with contextlib.suppress(UntrustedInputError):
        header = parse_ip(packet)
        assert header.length <= len(packet)
        assert header.src + header.dst in packet


@given(st.binary(min_size=256, max_size=256))
def test_static_keys_round_trip(key):
    assert keyfile.parse_static_key(keyfile.format_static_key(key)) == key


@given(st.binary(max_size=1500))
def test_pem_round_trips(content):
    text = keyfile.format_pem(content, "a name")
    assert keyfile.parse_pem(text, "a name") == content


@pytest.mark.parametrize(
    "parse",
    [
        keyfile.parse_static_key,
        keyfile.parse_client_key_v2,
        keyfile.parse_server_key,
    ],
)
@given(
    st.one_of(
        st.text(max_size=300),
        st.text(max_size=100).map(
            lambda text: (
                f"-----BEGIN OpenVPN Static key V1-----{text}"
                "-----END OpenVPN Static key V1-----"
            )
        ),
        st.tuples(
            st.sampled_from(
                [keyfile.TLS_CRYPT_V2_CLIENT, keyfile.TLS_CRYPT_V2_SERVER]
            ),
            st.text(max_size=100),
        ).map(lambda p: f"-----BEGIN {p[0]}-----{p[1]}-----END {p[0]}-----"),
    )
)
def test_any_key_file_is_a_key_or_a_value_error(parse, text):
    with contextlib.suppress(ValueError):
        parse(text)
