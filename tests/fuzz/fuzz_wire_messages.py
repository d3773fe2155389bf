"""Any TLS plaintext is a list of messages: nothing is raised, none is lost.

No message holds a control character, and what came is what is in them.
"""

from qubes_vpn.wire.messages import (
    AuthFailed,
    CrResponse,
    Info,
    PushReply,
    PushUpdate,
    Rejected,
    Restart,
    Unknown,
    parse_challenge,
    parse_messages,
)

SEEDS = (
    b"PUSH_REPLY,ifconfig 10.8.0.2 255.255.255.0,ping 10,push-continuation 2\0",
    b"PUSH_UPDATE,-route,?dns server 1 address 10.8.0.1,push-continuation 1\0",
    b"AUTH_FAILED,CRV1:R,E:state:YWxpY2U=:pin?\0AUTH_FAILED\0",
    b"AUTH_FAILED,TEMP[backoff 42,advance no]:later\0AUTH_FAILED,SESSION:x\0",
    b"AUTH_PENDING,timeout 60\0INFO_PRE,WEB_AUTH::https://a.b/c\0INFO,x\0",
    b"CR_RESPONSE,YQ==\0RESTART,[PN]bye\0HALT\0EXIT\0PUSH_REQUEST\0",
    b"PUSH_REPLY,dns search-domains a\nb\r\n\0\x7f\0no end",
)
TEXTS = {
    AuthFailed: lambda one: (one.reason, one.advance),
    Info: lambda one: (one.text,),
    PushReply: lambda one: one.options,
    PushUpdate: lambda one: one.options,
    Restart: lambda one: (one.text,),
    Unknown: lambda one: (one.text,),
}


def one_input(data: bytes) -> None:
    """Parse one record."""
    messages = parse_messages(data)
    pieces = data.split(b"\0")
    wanted = sum(bool(one.rstrip(b"\r\n")) for one in pieces[:-1])
    assert len(messages) == wanted + bool(pieces[-1])
    for message in messages:
        if isinstance(message, Rejected):
            assert message.reason in {"control-character", "unterminated"}
            assert message.excerpt == "" or int(message.excerpt, 16) >= 0
            assert len(message.excerpt) <= 512
            continue
        for text in TEXTS.get(type(message), lambda _: ())(message):
            assert all(ord(char) >= 0x20 for char in text)
        if isinstance(message, CrResponse):
            assert isinstance(message.answer, bytes)
    parse_challenge(data.decode("utf-8", "backslashreplace"))
