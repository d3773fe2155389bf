"""What a proxy can say before the stream is the server's."""

import base64
import hashlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.config.model import Proxy, Remote
from qubes_vpn.engine.proxy import (
    HttpConnect,
    Socks5,
    dialog,
    relay_header,
    relay_header_size,
)
from qubes_vpn.errors import SessionError

HOST, PORT = "vpn.example", 443


def http(auth="none", name="", password="", **more):
    proxy = Proxy("http", "192.0.2.8", 8080, auth, name, password, **more)
    return HttpConnect(proxy, HOST, PORT, lambda size: b"\x01" * size)


def socks(name="", password="", **more):
    auth = "basic" if name else "none"
    proxy = Proxy("socks", "192.0.2.8", 1080, auth, name, password)
    return Socks5(proxy, HOST, PORT, **more)


def through(proto, kind="socks", host=HOST):
    return Remote(host, PORT, proto, proxy=Proxy(kind, "192.0.2.8", 1080))


def challenge(*offers):
    lines = [f"Proxy-Authenticate: {offer}\r\n" for offer in offers]
    return ("HTTP/1.1 407 No\r\n" + "".join(lines) + "\r\n").encode()


def test_http_says_where_to_and_is_done_at_200():
    asking = http(user_agent="me", headers=(("X-A", "b"),))
    assert asking.begin() == (
        b"CONNECT vpn.example:443 HTTP/1.0\r\nHost: vpn.example:443\r\n"
        b"User-Agent: me\r\nX-A: b\r\n\r\n"
    )
    for byte in b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r":
        assert asking.feed(bytes([byte])) == b""
        assert not asking.done
    asking.feed(b"\n")
    assert asking.done


def test_an_ipv6_address_is_in_brackets():
    proxy = Proxy("http", "192.0.2.8", 8080)
    asking = HttpConnect(proxy, "2001:db8::1", 443, bytes)
    assert b"CONNECT [2001:db8::1]:443 " in asking.begin()


def test_basic_is_sent_at_once_when_the_profile_says_so():
    pair = base64.b64encode(b"me:pass").decode()
    assert f"Basic {pair}\r\n".encode() in http("basic", "me", "pass").begin()


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-256", None])
@pytest.mark.parametrize("qop", ["auth", "auth-int,auth", None])
def test_digest_is_what_rfc_7616_says(algorithm, qop):
    asking = http("auto", "Mufasa", "Circle of Life")
    assert b"Authorization" not in asking.begin()
    offer = 'Digest realm="r@x", nonce="7ypf", opaque="FQhe"'
    offer += f", algorithm={algorithm}" if algorithm else ""
    offer += f', qop="{qop}"' if qop else ""
    asking.feed(challenge("NTLM", offer))
    assert asking.again
    asking.closed()
    sent = asking.begin().decode()

    def digest(text):
        name = "sha256" if algorithm == "SHA-256" else "md5"
        return hashlib.new(name, text.encode()).hexdigest()

    first = digest("Mufasa:r@x:Circle of Life")
    second = digest("CONNECT:vpn.example:443")
    middle = f"7ypf:00000001:{'01' * 16}:auth" if qop else "7ypf"
    response = digest(f"{first}:{middle}:{second}")
    assert f'response="{response}"' in sent
    assert 'opaque="FQhe"' in sent
    assert ("qop=auth," in sent + ",") == bool(qop)


def test_a_password_goes_in_clear_only_where_that_was_asked_for():
    asking = http("auto-nct", "me", "pass")
    asking.begin()
    with pytest.raises(SessionError, match="basic and digest"):
        asking.feed(challenge('Basic realm="x"'))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403"),
        (b"SSH-2.0-x\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", "out of turn"),
        (b"x" * 20_000, "does not end"),
        (challenge("Basic"), "http-proxy-user-pass"),
    ],
)
def test_http_refusals_name_the_directive(reply, words):
    asking = http()
    asking.begin()
    with pytest.raises(SessionError, match="http-proxy") as caught:
        asking.feed(reply)
    assert words in str(caught.value)


def test_a_second_challenge_is_a_refusal():
    asking = http("auto", "me", "wrong-one")
    asking.begin()
    asking.feed(challenge('Digest realm="r", nonce="n"'))
    asking.begin()
    with pytest.raises(SessionError) as caught:
        asking.feed(challenge('Digest realm="r", nonce="n"'))
    assert "wrong-one" not in str(caught.value)


def test_ntlm_is_refused_with_advice():
    asking = http("auto", "me", "pass")
    asking.begin()
    with pytest.raises(SessionError, match="NTLM is not"):
        asking.feed(challenge("NTLM"))


def test_socks_without_a_password():
    asking = socks()
    assert asking.begin() == b"\x05\x01\x00"
    assert asking.feed(b"\x05") == b""
    assert asking.feed(b"\x00") == b"\x05\x01\x00\x03\x0bvpn.example\x01\xbb"
    for byte in b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00":
        asking.feed(bytes([byte]))
        assert not asking.done
    asking.feed(b"\x01")
    assert asking.done


def test_socks_with_a_password():
    asking = socks("me", "pass")
    assert asking.begin() == b"\x05\x02\x00\x02"
    assert asking.feed(b"\x05\x02") == b"\x01\x02me\x04pass"
    assert asking.feed(b"\x01\x00").startswith(b"\x05\x01\x00")


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([b"HT"], "does not speak SOCKS5"),
        ([b"\x05\xff"], "third word"),
        ([b"\x05\x02"], "third word"),
        ([b"\x05\x00", b"\x05\x05\x00\x01\x00"], "connection refused"),
        ([b"\x05\x00", b"\x05\x00\x00\x09\x00"], "unknown kind"),
        ([b"\x05\x00", b"\x05\x00\x00\x01" + bytes(7)], "out of turn"),
    ],
)
def test_socks_refusals_name_the_directive(replies, words):
    asking = socks()
    asking.begin()
    *before, last = replies
    for reply in before:
        asking.feed(reply)
    with pytest.raises(SessionError, match="socks-proxy") as caught:
        asking.feed(last)
    assert words in str(caught.value)


def test_a_refused_socks_password_is_not_repeated():
    asking = socks("me", "hush-hush")
    asking.begin()
    asking.feed(b"\x05\x02")
    with pytest.raises(SessionError) as caught:
        asking.feed(b"\x01\x01")
    assert "hush" not in str(caught.value)


@given(st.booleans(), st.lists(st.binary(max_size=200), max_size=8))
def test_any_bytes_are_an_answer_or_a_session_error(is_http, parts):
    asking = http("auto", "me", "pass") if is_http else socks("me", "pass")
    asking.begin()
    try:
        for part in parts:
            asking.feed(part)
    except SessionError:
        assert not asking.done


# --- datagrams


def test_a_remote_says_which_dialog_it_needs():
    assert dialog(Remote(HOST, PORT), bytes) is None
    assert isinstance(dialog(through("tcp", "http"), bytes), HttpConnect)
    for proto, command in (("tcp", 1), ("udp", 3)):
        asking = dialog(through(proto), bytes)
        asking.begin()
        assert asking.feed(b"\x05\x00")[:3] == bytes((5, command, 0))


def associated(reply):
    asking = socks(datagrams=True)
    asking.begin()
    assert asking.feed(b"\x05\x00") == b"\x05\x03\x00\x01" + bytes(6)
    asking.feed(b"\x05\x00\x00" + reply)
    assert asking.done
    return asking


V4, V6 = ip_address("192.0.2.8"), ip_address("2001:db8::8")


@pytest.mark.parametrize(
    ("proxy", "reply"),
    [
        (V4, b"\x01" + V4.packed),
        (V4, b"\x01" + bytes(4)),
        (V6, b"\x04" + V6.packed),
        (V6, b"\x01" + bytes(4)),
    ],
)
def test_the_relay_is_the_proxy(proxy, reply):
    assert associated(reply + b"\x04\x38").relay_port(proxy) == 1080


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (b"\x01\xc0\x00\x02\x09\x04\x38", "relays at 192.0.2.9 port 1080"),
        (b"\x01" + V4.packed + b"\x00\x00", "port 0"),
        (b"\x04" + V6.packed + b"\x04\x38", "only its own address"),
        (b"\x03\x04name\x04\x38", "names its relay"),
    ],
)
def test_a_relay_elsewhere_is_refused(reply, words):
    with pytest.raises(SessionError, match=words) as caught:
        associated(reply).relay_port(V4)
    assert caught.value.code == "QV-305"


def test_after_the_association_the_proxy_has_nothing_to_say():
    asking = associated(b"\x01" + V4.packed + b"\x04\x38")
    with pytest.raises(SessionError, match="out of turn"):
        asking.feed(b"\x05")
    with pytest.raises(SessionError, match="hangs up"):
        associated(b"\x01" + V4.packed + b"\x04\x38").closed()


def test_headers_of_datagrams():
    assert relay_header(Remote(HOST, PORT)) == b""
    assert relay_header(through("tcp")) == b""
    head = relay_header(through("udp"))
    assert head == bytes(3) + b"\x03\x0bvpn.example\x01\xbb"
    four = relay_header(through("udp", host="192.0.2.1"))
    assert four == bytes(3) + b"\x01\xc0\x00\x02\x01\x01\xbb"
    six = relay_header(through("udp", host="2001:db8::1"))
    for header in (head, four, six):
        for more in (b"", b"data"):
            whole = memoryview(header + more)
            assert relay_header_size(whole) == len(header)
        for size in range(len(header)):
            assert relay_header_size(memoryview(header[:size])) == 0
    fragment = b"\0\0\1" + four[3:]
    unknown = b"\0\0\0\2" + four[4:]
    for bad in (fragment, unknown, b"\1" + four[1:]):
        assert relay_header_size(memoryview(bad + b"data")) == 0
