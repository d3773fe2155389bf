import pytest

from qubes_vpn.wire.messages import (
    AuthFailed,
    AuthPending,
    Challenge,
    CrResponse,
    Exit,
    Info,
    PushReply,
    PushRequest,
    PushUpdate,
    Rejected,
    Restart,
    Unknown,
    encode_cr_response,
    encode_message,
    encode_push,
    parse_challenge,
    parse_message,
    parse_messages,
)

# OpenVPN 2 doc/management-notes.txt
CRV1 = "CRV1:R,E:Om01u7Fh4LrGBS7uh0SWmzwabUiGiW6l:Y3Ix:Please enter token PIN"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PUSH_REQUEST", PushRequest()),
        ("PUSH_REPLY", PushReply(())),
        (
            "PUSH_REPLY,route 10.0.0.0 255.0.0.0,ping 10",
            PushReply(("route 10.0.0.0 255.0.0.0", "ping 10")),
        ),
        (
            'PUSH_REPLY,a "b,c",,push-continuation 2',
            PushReply(('a "b', 'c"'), 2),
        ),
        ("PUSH_REPLY,ping 1,push-continuation 1", PushReply(("ping 1",), 1)),
        ("PUSH_UPDATE,-dns,?ping 1", PushUpdate(("-dns", "?ping 1"))),
        ("AUTH_FAILED", AuthFailed()),
        ("AUTH_FAILED,no such user", AuthFailed("no such user")),
        ("AUTH_FAILED,TEMP", AuthFailed(temporary=True)),
        (
            "AUTH_FAILED,TEMP[backoff 42,advance no]:later",
            AuthFailed("later", True, 42, "no"),
        ),
        (
            "AUTH_FAILED,TEMP[backoff -1,advance x,foo]:later",
            AuthFailed("later", True),
        ),
        (
            "AUTH_FAILED,TEMP[backoff 9999999999999999999]",
            AuthFailed("", True),
        ),
        (
            "AUTH_FAILED,TEMP[advance remote",
            AuthFailed("", True, None, "remote"),
        ),
        ("AUTH_FAILED,TEMP:busy", AuthFailed("busy", True)),
        (
            "AUTH_FAILED,SESSION: token expired",
            AuthFailed("SESSION: token expired", session=True),
        ),
        (
            f"AUTH_FAILED,{CRV1}",
            AuthFailed(
                CRV1,
                challenge=Challenge(
                    True,
                    True,
                    "Om01u7Fh4LrGBS7uh0SWmzwabUiGiW6l",
                    "cr1",
                    "Please enter token PIN",
                ),
            ),
        ),
        ("AUTH_PENDING", AuthPending()),
        ("AUTH_PENDING,timeout 120,x", AuthPending(120)),
        ("AUTH_PENDING,timeout ٣", AuthPending()),
        ("INFO,hello, you", Info("hello, you")),
        ("INFO_PRE,WEB_AUTH::https://a", Info("WEB_AUTH::https://a", True)),
        ("CR_RESPONSE,aGk=", CrResponse(b"hi")),
        ("CR_RESPONSE,!", Unknown("CR_RESPONSE,!")),
        ("CR_RESPONSE,ä", Unknown("CR_RESPONSE,ä")),
        ("EXIT", Exit()),
        ("RESTART", Restart()),
        ("RESTART,[PN]bye", Restart("bye", False, True, True)),
        ("RESTART,[P", Restart("", False, True)),
        ("HALT,go away", Restart("go away", halt=True)),
        ("PUSH_OTHER", Unknown("PUSH_OTHER")),
        ("EXITING", Unknown("EXITING")),
    ],
)
def test_messages(text, message):
    assert parse_message(text) == message


@pytest.mark.parametrize(
    "text",
    [
        "CRV1:R:state:Y3Ix",
        "CRV2:R:state:Y3Ix:text",
        "CRV1:R:state:!!:text",
        "",
    ],
)
def test_what_is_no_challenge(text):
    assert parse_challenge(text) is None


def test_a_challenge_without_echo_keeps_colons_in_its_text():
    assert parse_challenge("CRV1:R:s:Y3Ix:a:b") == Challenge(
        False, True, "s", "cr1", "a:b"
    )


def test_one_record_may_hold_several_messages():
    record = b"PUSH_REPLY,ping 1\0INFO_PRE,x\0"
    assert parse_messages(record) == [
        PushReply(("ping 1",)),
        Info("x", pre=True),
    ]


def test_a_message_split_over_two_records_is_two():
    wire = b"PUSH_REPLY,ping 1\0"
    for cut in range(1, len(wire) - 1):
        first, second = wire[:cut], wire[cut:]
        assert parse_messages(first) == [Rejected("unterminated", first.hex())]
        (other,) = parse_messages(second)
        assert isinstance(other, Unknown)


@pytest.mark.parametrize("code", [*range(1, 32), 127])
def test_control_characters_reject_the_message_at_every_place(code):
    text = b"PUSH_REPLY,ping 1"
    for place in range(len(text)):
        bad = text[:place] + bytes((code,)) + text[place:]
        assert parse_messages(bad + b"\0EXIT\0") == [
            Rejected("control-character", bad.hex()),
            Exit(),
        ]


def test_line_ends_at_the_end_are_cut_off():
    assert parse_messages(b"EXIT\r\n\0\r\n\0") == [Exit()]


def test_bytes_above_ascii_are_text():
    assert parse_messages("INFO,ä\0".encode()) == [Info("ä")]
    assert parse_messages(b"INFO,\xff\0") == [Info("\\xff")]


def test_an_excerpt_is_short():
    (rejected,) = parse_messages(b"x" * 10_000)
    assert len(rejected.excerpt) == 128


def test_messages_are_encoded_with_their_nul():
    assert encode_message("PUSH_REQUEST") == b"PUSH_REQUEST\0"
    assert encode_push("PUSH_REPLY", ("a", "b"), 2) == (
        b"PUSH_REPLY,a,b,push-continuation 2\0"
    )
    assert encode_push("PUSH_UPDATE", ()) == b"PUSH_UPDATE\0"
    (answer,) = parse_messages(encode_cr_response(b"123"))
    assert answer == CrResponse(b"123")
