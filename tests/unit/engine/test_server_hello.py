import itertools
from dataclasses import replace
from ipaddress import ip_address
from random import Random

import pytest

from qubes_vpn.config.model import ControlWrapKey
from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.crypto.control_wrap import (
    METADATA_USER,
    PlainWrap,
    TlsAuthWrap,
    TlsCryptV2ClientWrap,
    TlsCryptWrap,
    timestamp_metadata,
    wrap_client_key,
)
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import Answer, Greeter, Source, Welcome
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.control import ControlPacket, decode_early_negotiation
from qubes_vpn.wire.opcode import Opcode

NOW = Now(1000.0, 1_700_000_000.0)
HERE = Source(0, ip_address("192.0.2.7"), 40_000)
SID = bytes(range(1, 9))
KEY = bytes(range(256))
SERVER_KEY = bytes(range(128))
UNLIMITED = (0, 0)

RESET = Opcode.P_CONTROL_HARD_RESET_CLIENT_V2
RESET3 = Opcode.P_CONTROL_HARD_RESET_CLIENT_V3
ACK = Opcode.P_ACK_V1
CONTROL = Opcode.P_CONTROL_V1
WKC = Opcode.P_CONTROL_WKC_V1


def v2_wrap(metadata=bytes([METADATA_USER])):
    wkc = wrap_client_key(SERVER_KEY, KEY, metadata)
    return TlsCryptV2ClientWrap(KEY, wkc)


KINDS = {
    "plain": (ServerProfile(), PlainWrap, RESET, CONTROL),
    "tls-auth": (
        ServerProfile(control_wrap=ControlWrapKey("tls-auth", KEY, 0)),
        lambda: TlsAuthWrap(KEY, 1),
        RESET,
        CONTROL,
    ),
    "tls-crypt": (
        ServerProfile(control_wrap=ControlWrapKey("tls-crypt", KEY)),
        lambda: TlsCryptWrap(KEY, is_server=False),
        RESET,
        CONTROL,
    ),
    "tls-crypt-v2": (
        ServerProfile(tls_crypt_v2=SERVER_KEY, force_cookie=True),
        v2_wrap,
        RESET3,
        WKC,
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    profile, make, reset, control = KINDS[request.param]
    return profile, make(), reset, control


def greeter(profile, limit=UNLIMITED, **more):
    profile = replace(profile, connect_freq_initial=limit)
    return Greeter(profile, Random(1).randbytes, **more)


def reset_packet(opcode, sid=SID, packet_id=0, key_id=0):
    return ControlPacket(opcode, key_id, sid, packet_id=packet_id)


def third(answer, opcode=ACK, sid=SID, acks=(0,), packet_id=None):
    return ControlPacket(
        opcode, 0, sid, acks, answer.session_id, packet_id, b"x" * 9
        if packet_id is not None else b"",
    )  # fmt: skip


def judge(server, wrap, packet, source=HERE, now=NOW):
    return server.judge(wrap.wrap(packet, NOW.unix), source, now)


def refused(server, wrap, packet, source=HERE, now=NOW):
    with pytest.raises(UntrustedInputError) as caught:
        judge(server, wrap, packet, source, now)
    return caught.value.reason


def test_a_reset_is_answered_and_the_cookie_opens(kind):
    profile, wrap, reset, control = kind
    server = greeter(profile)
    verdict = judge(server, wrap, reset_packet(reset))
    assert isinstance(verdict, Answer)
    answer = wrap.unwrap(verdict.datagram, NOW.unix)
    assert answer.opcode is Opcode.P_CONTROL_HARD_RESET_SERVER_V2
    assert answer.acks == (0,)
    assert answer.peer_session_id == SID
    assert decode_early_negotiation(answer.payload) is (control is WKC)
    welcome = judge(server, wrap, third(answer, control, packet_id=1))
    assert isinstance(welcome, Welcome)
    assert (welcome.client_sid, welcome.server_sid) == (SID, answer.session_id)
    assert welcome.skip_reset


def test_the_first_packet_after_the_reset_is_not_a_replay(kind):
    """The session's wrap goes on where the stateless answer left off."""
    profile, wrap, reset, control = kind
    server = greeter(profile)
    verdict = judge(server, wrap, reset_packet(reset))
    answer = wrap.unwrap(verdict.datagram, NOW.unix)
    welcome = judge(server, wrap, third(answer, control, packet_id=1))
    datagram = welcome.wrap.wrap(
        ControlPacket(ACK, 0, answer.session_id, (1,), SID), NOW.unix
    )
    assert wrap.unwrap(datagram, NOW.unix).acks == (1,)


def test_the_cookie_is_good_for_its_address_its_client_and_a_while():
    server, wrap = greeter(ServerProfile()), PlainWrap()
    verdict = judge(server, wrap, reset_packet(RESET))
    answer = wrap.unwrap(verdict.datagram, NOW.unix)
    packet = third(answer)
    assert isinstance(judge(server, wrap, packet), Welcome)
    for other in (
        replace(HERE, port=40_001),
        replace(HERE, address=ip_address("192.0.2.8")),
    ):
        assert refused(server, wrap, packet, other) == "bad-cookie"
    later = Now(NOW.mono + 55, NOW.unix + 55)
    assert isinstance(judge(server, wrap, packet, now=later), Welcome)
    too_late = Now(NOW.mono + 100, NOW.unix + 100)
    assert refused(server, wrap, packet, now=too_late) == "bad-cookie"
    future = Now(NOW.mono - 40, NOW.unix)
    assert refused(server, wrap, packet, now=future) == "bad-cookie"
    stranger = third(answer, sid=bytes(7) + b"z")
    assert refused(server, wrap, stranger) == "bad-cookie"


def test_no_bit_of_a_cookie_is_ignored():
    server, wrap = greeter(ServerProfile()), PlainWrap()
    verdict = judge(server, wrap, reset_packet(RESET))
    answer = wrap.unwrap(verdict.datagram, NOW.unix)
    for bit in range(64):
        flipped = int.from_bytes(answer.session_id) ^ (1 << bit)
        packet = replace(third(answer), peer_session_id=flipped.to_bytes(8))
        assert refused(server, wrap, packet) == "bad-cookie"


def test_another_servers_cookie_is_none_of_ours():
    wrap = PlainWrap()
    verdict = judge(greeter(ServerProfile()), wrap, reset_packet(RESET))
    answer = wrap.unwrap(verdict.datagram, NOW.unix)
    other = Greeter(ServerProfile(), Random(2).randbytes)
    assert refused(other, wrap, third(answer)) == "bad-cookie"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"packet_id": 2, "opcode": CONTROL}, "no-session"),
        ({"acks": (0, 2)}, "no-session"),
        ({"acks": (), "opcode": CONTROL, "packet_id": 1}, "no-session"),
        ({"key_id": 1}, "bad-key-id"),
        ({"opcode": Opcode.P_CONTROL_SOFT_RESET_V1, "packet_id": 0}, "no-session"),
        ({"opcode": Opcode.P_CONTROL_HARD_RESET_SERVER_V2, "packet_id": 0}, "no-session"),
        ({"opcode": RESET, "packet_id": 1}, "reset-not-first"),
    ],
)  # fmt: skip
def test_what_is_not_the_third_packet_opens_nothing(change, reason):
    server, wrap = greeter(ServerProfile()), PlainWrap()
    verdict = judge(server, wrap, reset_packet(RESET))
    answer = wrap.unwrap(verdict.datagram, NOW.unix)
    assert refused(server, wrap, replace(third(answer), **change)) == reason


def test_every_short_or_senseless_packet_is_dropped():
    rng = Random(3)
    for profile, *_ in KINDS.values():
        server = greeter(profile)
        for size, opcode in itertools.product(range(65), range(32)):
            datagram = bytes([opcode << 3]) + rng.randbytes(size)
            try:
                verdict = server.judge(datagram[: size or 0], HERE, NOW)
            except UntrustedInputError:
                continue
            # only a plain reset needs no key
            assert isinstance(verdict, Answer)
            assert profile == ServerProfile()


@pytest.mark.parametrize("name", ["tls-auth", "tls-crypt", "tls-crypt-v2"])
def test_a_wrapped_packet_with_any_byte_changed_is_silence(name):
    profile, make, reset, _ = KINDS[name]
    server = greeter(profile)
    datagram = make().wrap(reset_packet(reset), NOW.unix)
    assert isinstance(server.judge(datagram, HERE, NOW), Answer)
    for index in range(1, len(datagram)):
        damaged = bytearray(datagram)
        damaged[index] ^= 0x40
        with pytest.raises(UntrustedInputError):
            server.judge(bytes(damaged), HERE, NOW)


def test_a_forged_or_foreign_client_key_gets_nothing():
    server = greeter(KINDS["tls-crypt-v2"][0])
    forged = TlsCryptV2ClientWrap(KEY, Random(1).randbytes(290) + b"\x01\x24")
    assert refused(server, forged, reset_packet(RESET3)) == "bad-wkc"
    foreign = TlsCryptV2ClientWrap(KEY, wrap_client_key(bytes(128), KEY, b"\0"))
    assert refused(server, foreign, reset_packet(RESET3)) == "bad-wkc"
    datagram = v2_wrap().wrap(reset_packet(RESET3), NOW.unix)
    for length in range(0, 65536, 7):
        with pytest.raises(UntrustedInputError):
            server.judge(datagram[:-2] + length.to_bytes(2), HERE, NOW)


def test_a_client_key_can_be_denied_or_too_old():
    profile = ServerProfile(tls_crypt_v2=SERVER_KEY, tls_crypt_v2_max_age=10)
    server = greeter(profile)
    young = timestamp_metadata(NOW.unix - 9 * 86400)
    old = timestamp_metadata(NOW.unix - 11 * 86400)
    assert isinstance(
        judge(server, v2_wrap(young), reset_packet(RESET3)), Answer
    )
    assert refused(server, v2_wrap(old), reset_packet(RESET3)) == "old-wkc"
    assert refused(server, v2_wrap(), reset_packet(RESET3)) == "old-wkc"
    alice = bytes([METADATA_USER]) + b"alice"
    server = greeter(KINDS["tls-crypt-v2"][0], denied=frozenset({b"alice"}))
    assert isinstance(judge(server, v2_wrap(), reset_packet(RESET3)), Answer)
    assert refused(server, v2_wrap(alice), reset_packet(RESET3)) == "denied-wkc"


def test_tls_crypt_v2_stands_alone_or_beside_another_wrap():
    alone = greeter(KINDS["tls-crypt-v2"][0])
    assert (
        refused(alone, PlainWrap(), reset_packet(RESET)) == "needs-tls-crypt-v2"
    )
    both = greeter(
        ServerProfile(
            tls_crypt_v2=SERVER_KEY,
            control_wrap=ControlWrapKey("tls-crypt", KEY),
        )
    )
    old = TlsCryptWrap(KEY, is_server=False)
    assert isinstance(judge(both, old, reset_packet(RESET)), Answer)
    assert isinstance(judge(both, v2_wrap(), reset_packet(RESET3)), Answer)
    none = greeter(ServerProfile())
    assert refused(none, v2_wrap(), reset_packet(RESET3)) == "no-tls-crypt-v2"


def test_an_old_v2_client_needs_state_which_force_cookie_refuses():
    wkc = wrap_client_key(SERVER_KEY, KEY, b"\0")
    # a packet id from 1: no early negotiation
    datagram = TlsCryptWrap(KEY, is_server=False).wrap(
        reset_packet(RESET3), NOW.unix
    )
    lax = greeter(ServerProfile(tls_crypt_v2=SERVER_KEY))
    verdict = lax.judge(datagram + wkc, HERE, NOW)
    assert isinstance(verdict, Welcome)
    assert not verdict.skip_reset
    strict = greeter(KINDS["tls-crypt-v2"][0])
    with pytest.raises(UntrustedInputError, match="cookie-forced"):
        strict.judge(datagram + wkc, HERE, NOW)


def flood(server, count, rng):
    """Send plain resets from everywhere; give bytes in, and out."""
    received = sent = 0
    for _ in range(count):
        datagram = PlainWrap().wrap(
            reset_packet(RESET, rng.randbytes(8)), NOW.unix
        )
        source = Source(0, ip_address(rng.randbytes(4)), rng.randrange(65536))
        received += len(datagram)
        try:
            sent += len(server.judge(datagram, source, NOW).datagram)
        except UntrustedInputError:
            continue
    return received, sent


def test_a_flood_is_answered_with_fewer_bytes_than_it_has():
    server = greeter(ServerProfile(), (100, 10))
    received, sent = flood(server, 5000, Random(4))
    assert sent < received


def test_a_real_client_gets_through_a_flood_by_asking_again():
    server = greeter(ServerProfile(), (100, 10))
    rng = Random(5)
    flood(server, 3000, rng)
    for _ in range(20):
        flood(server, 50, rng)
        try:
            verdict = judge(server, PlainWrap(), reset_packet(RESET))
        except UntrustedInputError:
            continue
        assert isinstance(verdict, Answer)
        return
    pytest.fail("never answered")


def test_one_network_gets_so_many_answers_in_a_period():
    server = greeter(ServerProfile(), (100, 10))
    answers = 0
    for i in range(400):
        source = replace(HERE, port=i)
        try:
            judge(server, PlainWrap(), reset_packet(RESET), source)
        except UntrustedInputError:
            continue
        answers += 1
    assert answers == 100
    packet = reset_packet(RESET)
    assert refused(server, PlainWrap(), packet) == "too-many-resets"
    later = Now(NOW.mono + 10, NOW.unix + 10)
    assert isinstance(
        judge(server, PlainWrap(), reset_packet(RESET), now=later), Answer
    )
