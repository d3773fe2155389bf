"""Any reply of a proxy is a way on, or SessionError proxy-refused.

What is kept is bounded, however the reply is cut, and what a proxy says
never becomes a line of what it is told.
"""

from ipaddress import ip_address

from qubes_vpn.config.model import Proxy, Remote
from qubes_vpn.engine.proxy import (
    REPLY_MAX,
    Socks5,
    dialog,
    relay_header_size,
)
from qubes_vpn.errors import SessionError

HTTP = Proxy("http", "192.0.2.3", 3128, username="u", password="p", auth="auto")
SOCKS = Proxy("socks", "192.0.2.3", 1080, username="u", password="p")
KINDS = {b"h": ("tcp", HTTP), b"s": ("tcp", SOCKS), b"u": ("udp", SOCKS)}
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
    b"u\x40\x05\x00\x05\x00\x00\x01\xc0\x00\x02\x03\x04\x38",
    b"u\x40\x05\x00\x05\x00\x00\x03\x04name\x04\x38",
)


def one_input(data: bytes) -> None:
    """Feed a whole dialog, in pieces, on as many connections as it wants."""
    step = (data[1:2] or b"\1")[0] % 64 + 1
    proto, proxy = KINDS.get(data[:1], KINDS[b"s"])
    talk = dialog(Remote("198.51.100.1", 1194, proto, proxy=proxy), bytes)
    talk.begin()
    stream, begun = data[2:], 1
    assert 0 <= relay_header_size(memoryview(stream)) <= len(stream)
    try:
        for at in range(0, len(stream), step):
            talk.feed(stream[at : at + step])
            assert len(talk._received) <= REPLY_MAX + step
            if talk.done:
                if proto == "udp" and isinstance(talk, Socks5):
                    assert 0 < talk.relay_port(ip_address(proxy.host)) < 65536
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
