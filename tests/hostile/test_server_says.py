"""What a server that we trust for traffic, and nothing else, says inside TLS.

Rows P20 to P46: whatever it says, the network is open only with keys, the
session goes on or ends with a reason, and what is shown can be shown.
"""

import tracemalloc
import typing

import pytest

from qubes_vpn.config.pulled import merge
from qubes_vpn.engine import effects as do
from qubes_vpn.engine.settle import key_suite
from qubes_vpn.engine.states import Closed, Established, Pulling
from qubes_vpn.keeper import messages as keeper_messages
from qubes_vpn.keeper.codec import Codec
from qubes_vpn.runtime import mapping
from qubes_vpn.runtime.messages import CODEC, Report
from qubes_vpn.wire.opcode import Opcode
from tests.unit.config.test_pulled import PROFILE, REMOTE, SUBNET, pulled
from tests.unit.engine.pair import connected, pair
from tests.unit.engine.test_client import (
    REPLY,
    push,
    say,
    say_raw,
    up,
    waiting,
)

SHOWN = (do.Notice, do.AskUser, do.Ended)


def said(world):
    """Every text of the server's that a person may see."""
    for effect in world.effects:
        if isinstance(effect, SHOWN):
            for name in effect.__dataclass_fields__:
                value = getattr(effect, name)
                if isinstance(value, str):
                    yield value


def test_p20_a_command_split_at_every_byte_is_two_messages_and_no_command():
    data = f"{REPLY},cipher AES-256-GCM".encode() + b"\0"
    for at in range(1, len(data) - 1, 7):
        world = waiting()
        (session,) = world.server._sessions.values()
        session._channel.say(data[:at], world.now)
        say_raw(world, session, data[at:], limit=0.5)
        assert isinstance(world.client.state, Pulling), at
        assert not world.of(do.ApplySettings)


@pytest.mark.parametrize(
    "byte", [*range(1, 0x20), 0x7F, 0x80, 0x9B, 0xAD, 0xFF]
)
def test_p21_no_byte_of_a_message_reaches_a_terminal_raw(byte):
    char = bytes([byte])
    world = waiting()
    (session,) = world.server._sessions.values()
    say_raw(
        world,
        session,
        b"INFO_PRE,a" + char + b"b\0INFO,a" + char + b"b\0"
        b"AUTH_FAILED,a" + char + b"b\0",
        limit=0.5,
    )
    texts = list(said(world))
    for text in texts:
        assert text.encode("ascii", "backslashreplace").decode().isprintable()
        assert all(ord(each) >= 0x20 for each in text)
    if byte < 0x80 and byte not in (0x0A, 0x0D):
        assert not any("a" in text and "b" in text for text in texts)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "ifconfig",
        "ifconfig 10.8.0.2",
        "ifconfig 10.8.0.2 0.0.0.0,topology subnet",
        "ifconfig 10.8.0.255 255.255.255.0,topology subnet,route-gateway 0.0.0.0",
        "ifconfig 255.255.255.255 255.255.255.255,topology subnet",
        "ifconfig 10.8.0.2 255.255.255.0,ifconfig 10.8.0.3 255.255.255.0",
        "ifconfig " + "1" * 300,
        'ifconfig "10.8.0.2 255.255.255.0',
        "route 1.2.3.4 5.6.7.8," * 9999,
    ],
)
def test_p22_a_malformed_reply_is_never_applied_in_part(options):
    settings = merge(PROFILE, REMOTE, tuple(options.split(",")))
    address = settings.ifconfig4
    if address is not None:
        assert address.network.prefixlen > 0
        assert not address.ip.is_unspecified
        assert not address.ip.is_multicast
        assert str(address.ip) != "255.255.255.255"
    assert len(settings.routes) <= 1040
    assert len(settings.refused) <= 512


def test_p24_unknown_options_are_named_and_ignored():
    names = [f"option-{number}" for number in range(100)]
    settings = pulled(*(f"{name} 1" for name in names), "ping 7")
    assert settings.ping == 7
    assert [name for name, _ in settings.refused] == names


@pytest.mark.parametrize(
    "option",
    [
        *("up /bin/sh", "plugin /tmp/x.so", "script-security 3"),
        *("remote 203.0.113.9", "ca /etc/shadow", "setenv PATH /tmp"),
        *("iproute /tmp/ip", "writepid /etc/x", "log /etc/x"),
        *("management 0.0.0.0 1", "config /etc/shadow", "dev eth0"),
        *("auth-user-pass /etc/shadow", "tls-verify x", "user root"),
        *("http-proxy 203.0.113.9 1", "ipchange x", "route-up x"),
        *("learn-address x", "client-connect x", "syslog", "daemon"),
    ],
)
def test_p25_a_privileged_option_is_refused_by_name(option):
    settings = pulled(option)
    assert settings == pulled_with_refusal(settings)
    assert dict(settings.refused)[option.split()[0]]


def pulled_with_refusal(settings):
    """What nothing but the refusal makes of the same push."""
    from dataclasses import replace

    return replace(pulled(), refused=settings.refused)


@pytest.mark.parametrize(
    "name",
    [
        *("x;id", "`id`", "$(id)", "a\nb", "a" * 10_000, "a b", "a..b"),
        *("-a", "a/../b", "é.example", "a_b;", "'a'", "%00", "a\\b", "..", ""),
    ],
)
@pytest.mark.parametrize(
    "option", ["dns search-domains {}", "dhcp-option DOMAIN {}"]
)
def test_p26_a_domain_is_letters_digits_and_hyphens(option, name):
    settings = pulled(option.format(name), "dhcp-option DNS 10.8.0.1")
    for domain in settings.search:
        assert domain.isascii()
        assert set(domain) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-."
        )
        assert len(domain) <= 253
    assert name not in settings.search


@pytest.mark.parametrize(
    "option",
    [
        *("ifconfig ::1 255.0.0.0", "ifconfig 0x7f.1 255.0.0.0"),
        *("ifconfig 010.8.0.1 255.0.0.0", "ifconfig-ipv6 10.8.0.2/24 ::1"),
        *("ifconfig-ipv6 fd00::2%eth0/64 fd00::1", "ifconfig 10.8 255.0.0.0"),
        *("route 1.2.3", "route 0x0a.0.0.0", "route 010.0.0.0 255.0.0.0"),
        *("route-ipv6 10.0.0.0/8", "route ::/0", "route-ipv6 fe80::%1/64"),
        *("dhcp-option DNS 9.9.9", "dhcp-option DNS ::ffff:9.9.9.9"),
    ],
)
def test_p27_an_address_is_of_its_family_and_in_one_form(option):
    name = option.split()[0]
    base = [one for one in SUBNET if not one.startswith(f"{name} ")]
    settings = pulled(option, base=tuple(base))
    before = pulled(base=tuple(base))
    assert settings.refused
    assert settings.ifconfig4 == before.ifconfig4
    assert settings.ifconfig6 == before.ifconfig6
    assert settings.routes == before.routes
    assert settings.dns == before.dns


@pytest.mark.parametrize("mtu", ["0", "1", "99", "65535", "-1", "x", "9" * 40])
def test_p28_an_mtu_out_of_bounds_is_refused(mtu):
    settings = pulled(f"tun-mtu {mtu}")
    assert settings.mtu in (1280, 1500)
    assert settings.refused
    (four,) = {pulled(f"tun-mtu {mtu}", base=SUBNET[:2]).mtu}
    assert four in (576, 1500)
    for option in (f"mssfix {mtu}", "fragment 0", f"fragment {mtu}"):
        assert pulled(option).mtu == 1500


@pytest.mark.parametrize(
    "option",
    [
        *("comp-lzo", "comp-lzo yes", "compress lz4", "compress lz4-v2"),
        *("compress lzo", "compress zstd", "compress migrate"),
    ],
)
def test_p31_nothing_is_ever_compressed(option):
    compression = key_suite(PROFILE, pulled(option)).compression
    assert compression in {"", "stub", "swap", "stub-v2"}


@pytest.mark.parametrize(
    ("flags", "refused", "reason"),
    [
        ("tls-ekm", False, ""),
        ("cc-exit tls-ekm", False, ""),
        ("something-new", True, ""),
        ("tls-ekm something-new", True, ""),
        ("aead-epoch", False, "epoch-without-peer-id"),
    ],
)
def test_p34_protocol_flags_that_are_not_known(flags, refused, reason):
    """As OpenVPN 2 does: named, not acted on; the others hold."""
    world = waiting()
    world.chat = lambda: None
    push(world, f"{REPLY},cipher AES-256-GCM,protocol-flags {flags}")
    if reason:
        assert world.of(do.Ended)[0].reason == reason
        return
    assert isinstance(world.client.state, Established)
    settings = world.client.state.settings
    assert settings.tls_ekm is ("tls-ekm" in flags)
    named = any("protocol-flags" in name for name, _ in settings.refused)
    assert named is refused


AUTH_FAILED = (
    *("", ",", ",wrong", ",TEMP", ",TEMP[", ",TEMP[]", ",TEMP[backoff]"),
    *(",TEMP[backoff -1]", ",TEMP[backoff 99999999999]", ",TEMP[advance x]"),
    *(",TEMP[backoff 42,advance no]:busy", ",TEMP[backoff 1e9,advance addr]"),
    *(",SESSION", ",SESSION:x", ",CRV1", ",CRV1:", ",CRV1:R,E:s:!!:x"),
    *(",CRV1:R,E:s:YQ==:" + "x" * 3000, ",CRV1::::", ",%s%n", ",CRV1:E:s::q"),
)


@pytest.mark.parametrize("version", [4, 6])
def test_p29_the_largest_settings_fit_what_carries_them(version):
    """A push of many routes ended the engine, again and again."""
    six = "ifconfig-ipv6 fd00:1234:5678:9abc:def0:1234:5678:9abc/64 fd00::2"
    long = "2001:db8:1234:5678:9abc:def0:{:x}:1111"
    many = {
        4: (
            f"route 20.{n >> 8}.{n & 255}.0 255.255.255.0" for n in range(1200)
        ),
        6: (f"route-ipv6 {long.format(n)}/128 :: {10**9}" for n in range(1200)),
    }[version]
    servers = [f"dhcp-option DNS6 {long.format(n)}" for n in range(20)]
    refused = [f"{'x' * 64}{n} {'y' * 200}" for n in range(200)]
    settings = pulled(*many, *servers, *refused, base=(*SUBNET, six))
    configure = mapping.configure(settings)
    assert len(configure.routes) == len(settings.routes) + 2
    report = Report(
        "connected",
        dns=tuple(map(str, settings.dns)),
        routes=tuple(str(route.network) for route in settings.routes),
        refused=settings.refused,
        drops=tuple((f"a-reason-of-some-length-{n}", 10**9) for n in range(99)),
    )
    keeper = Codec(typing.get_args(keeper_messages.EngineRequest))
    for codec, message in ((keeper, configure), (CODEC, report)):
        assert codec.decode(codec.encode(1, message)) == (1, message)


@pytest.mark.parametrize("tail", AUTH_FAILED)
def test_p40_a_refusal_ends_the_session_with_a_reason(tail):
    world = waiting()
    push(world, f"AUTH_FAILED{tail}")
    if tail.startswith(",CRV1:R,E:s:YQ==") or not world.of(do.Ended):
        assert world.of(do.AskUser)
        return
    (end, *_) = world.of(do.Ended)
    assert end.reason
    assert end.backoff is None or 0 <= end.backoff <= 10**9
    assert "wonder" not in repr(world.effects)
    assert not world.of(do.OpenForwarding)


def test_p42_ten_thousand_messages_are_heard_and_not_kept():
    world = waiting()
    (session,) = world.server._sessions.values()
    texts = (
        b"INFO_PRE,x\0INFO,y\0ACC,z\0CR_RESPONSE,YQ==\0"
        b"AUTH_PENDING,timeout 9\0NOBODY,KNOWS\0"
    ) * 100

    def flood(times):
        for _ in range(times):
            say_raw(world, session, texts, limit=0.1)
            world.effects.clear()
            world.wire.seen.clear()

    flood(4)
    tracemalloc.start()
    try:
        flood(4)
        before, _ = tracemalloc.get_traced_memory()
        flood(12)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 256 * 1024
    assert world.client.state.deadline - world.time <= 3600
    push(world, f"{REPLY},cipher AES-256-GCM")
    assert isinstance(world.client.state, Established)


@pytest.mark.parametrize(
    ("text", "retry"),
    [
        ("RESTART", True),
        ("RESTART,[PN]", True),
        ("HALT", False),
        ("EXIT", True),
    ],
)
def test_p43_an_end_closes_before_it_ends(text, retry):
    world = up()
    say(world, text)
    (end, *_) = world.of(do.Ended)
    assert end.retry is retry
    kinds = [type(effect) for effect in world.effects]
    at = kinds.index(do.Ended)
    closed = max(
        number for number in range(at) if kinds[number] is do.CloseForwarding
    )
    opened = max(
        number for number in range(at) if kinds[number] is do.OpenForwarding
    )
    assert opened < closed < at


@pytest.mark.parametrize("text", ["RESTART", "HALT", "EXIT"])
def test_p43_outside_tls_it_is_noise(text):
    world = up("plain")
    world.client.receive(text.encode() + b"\0", world.now)
    assert world.established
    assert sum(world.client.drops.values()) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x15\x03\x03\0\2\1\0",
        b"\x15\x03\x03\0\2\2\x28",
        b"\x17\x03\x03\0\x20" + b"x" * 32,
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\xff\xff",
    ],
)
def test_p45_bytes_that_are_no_tls_in_mid_session(garbage):
    """Whoever can get them in has the wrap's key: the session is new then."""
    world = up("tls-crypt", client={"reneg_sec": 0})
    (session, _), *_ = world.server.connected()
    session._channel.key.reliable.queue(Opcode.P_CONTROL_V1, garbage * 40)
    session._channel._flush(world.now)
    world.drain()
    world.until(lambda one: one.restarts or one.time > 20, limit=30, every=0.5)
    world.until(connected, limit=60)
    for effect in world.of(do.Ended):
        assert effect.reason
        assert effect.retry


def test_p46_a_server_that_falls_silent_in_the_handshake():
    world = pair("tls-crypt")
    world.until(lambda one: len(one.wire.seen) > 4, limit=5)
    world.wire.cut = True
    world.until(lambda one: one.of(do.Ended), limit=70)
    end = world.of(do.Ended)[0]
    assert end.reason
    assert end.retry
    assert (
        not isinstance(world.client.state, Closed) or not world.law.forwarding
    )
