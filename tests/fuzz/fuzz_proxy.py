"""Any reply of a proxy is a way on, or SessionError proxy-refused.

What is kept is bounded, however the reply is cut, and what a proxy says
never becomes a line of what it is told.
"""

from qubes_vpn.config.model import Proxy
from qubes_vpn.engine.proxy import REPLY_MAX, dialog
from qubes_vpn.errors import SessionError

HTTP = Proxy("http", "192.0.2.3", 3128, username="u", password="p", auth="auto")
SOCKS = Proxy("socks", "192.0.2.3", 1080, username="u", password="p")
DENIED = b"HTTP/1.1 407 no\r\nProxy-Authenticate: "
SEEDS = (
    b"h\x40HTTP/1.1 200 OK\r\n\r\n",
    b"h\x40" + DENIED + b"Basic realm=x\r\n\r\nHTTP/1.0 200 yes\r\n\r\n",
    b"h\x40" + DENIED + b'Digest realm="a", nonce="b", qop="auth,auth-int",'
    b' algorithm=SHA-256, opaque="c"\r\n\r\nHTTP/1.0 200 yes\r\n\r\n',
    b"h\x40" + DENIED + b'Digest realm="a", nonce="b\nX: y"\r\n\r\n',
    b"s\x01\x05\x00\x05\x00\x00\x01\x01\x02\x03\x04\x04\xaa",
    b"s\x03\x05\x02\x01\x00\x05\x00\x00\x03\x01a\x00\x50",
    b"s\x40\x05\x00\x05\x05\x00\x04" + bytes(18),
)


def one_input(data: bytes) -> None:
    """Feed a whole dialog, in pieces, on as many connections as it wants."""
    http, step = data[:1] == b"h", (data[1:2] or b"\1")[0] % 64 + 1
    talk = dialog(HTTP if http else SOCKS, "198.51.100.1", 1194, bytes)
    talk.begin()
    stream, begun = data[2:], 1
    try:
        for at in range(0, len(stream), step):
            talk.feed(stream[at : at + step])
            assert len(talk._received) <= REPLY_MAX + step
            if talk.done:
                return
            if talk.again:
                talk.closed()
                said = talk.begin()
                begun += 1
                head = said.removesuffix(b"\r\n\r\n")
                for line in head.split(b"\r\n"):
                    assert line.decode().isprintable()
        talk.closed()
    except SessionError as error:
        assert error.reason == "proxy-refused"
        assert "p" not in error.detail.split() or len(error.detail) < 200
    assert begun <= 2
