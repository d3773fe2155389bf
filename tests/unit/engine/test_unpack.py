"""Unpacking, with the real libraries on the other side."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.engine.unpack import UNPACKED_MAX, unpack_lz4, unpack_lzo
from qubes_vpn.errors import UntrustedInputError
from tests.unit.engine.packets import channels

LZO = ctypes.CDLL("liblzo2.so.2")
LZ4 = ctypes.CDLL("liblz4.so.1")
WORK = ctypes.create_string_buffer(1 << 20)


def pack_lzo(content, name="lzo1x_1_15_compress"):
    """openvpn uses lzo1x_1_15; lzo1x_999 makes every kind of match."""
    out = ctypes.create_string_buffer(len(content) * 2 + 100)
    size = ctypes.c_ulong(0)
    pack = getattr(LZO, name)
    assert not pack(
        content, ctypes.c_ulong(len(content)), out, ctypes.byref(size), WORK
    )
    return out.raw[: size.value]


def pack_lz4(content):
    out = ctypes.create_string_buffer(len(content) * 2 + 100)
    size = LZ4.LZ4_compress_default(content, out, len(content), len(out))
    assert size > 0
    return out.raw[:size]


words = st.lists(
    st.tuples(st.binary(min_size=1, max_size=8), st.integers(1, 400)),
    min_size=1,
    max_size=12,
).map(lambda parts: b"".join(word * times for word, times in parts))


@given(words)
@pytest.mark.parametrize("name", ["lzo1x_1_15_compress", "lzo1x_999_compress"])
def test_lzo_goes_round(name, content):
    assert unpack_lzo(pack_lzo(content, name)) == content


def test_lzo_reaches_far_back():
    far = bytes(range(256)) * 4
    content = far + bytes(20_000) + far + b"abc" * 30_00 + far
    for name in ("lzo1x_1_15_compress", "lzo1x_999_compress"):
        assert unpack_lzo(pack_lzo(content, name)) == content


@given(words)
def test_lz4_goes_round(content):
    assert unpack_lz4(pack_lz4(content)) == content


@pytest.mark.parametrize("unpack", [unpack_lzo, unpack_lz4])
@given(content=st.binary(max_size=200))
def test_any_bytes_are_unpacked_or_refused(unpack, content):
    try:
        size = len(unpack(content))
    except UntrustedInputError as error:
        size = 0
        reason = error.reason
        assert reason == "bad-compression"
    assert size <= UNPACKED_MAX


@pytest.mark.parametrize(
    ("unpack", "pack"), [(unpack_lzo, pack_lzo), (unpack_lz4, pack_lz4)]
)
def test_a_bomb_is_refused(unpack, pack):
    assert len(unpack(pack(bytes(60_000)))) == 60_000
    with pytest.raises(UntrustedInputError):
        unpack(pack(bytes(70_000)))


@pytest.mark.parametrize(
    ("framing", "packed"),
    [
        ("lzo-rx", b"\x66" + pack_lzo(bytes(100))),
        ("lz4-v2-rx", b"\x50\x01" + pack_lz4(bytes(100))),
    ],
)
def test_nothing_is_unpacked_that_is_not_allowed(framing, packed):
    strict = {"lzo-rx": "stub", "lz4-v2-rx": "stub-v2"}[framing]
    client, server = channels(compression=strict)
    key = server.primary
    key.style = ""
    assert client.open(server.seal(packed, 1.0), 1.0) is None
    assert client.drops == {"compressed": 1}
