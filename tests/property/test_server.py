"""Whatever anybody sends, a server answers, begins a session, or drops it."""

import random

from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.crypto.control_wrap import PlainWrap
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.hello import Answer, Greeter, Welcome
from qubes_vpn.engine.server import ServerEngine
from qubes_vpn.engine.server_effects import ForClient, Removed, SendTo
from qubes_vpn.errors import UntrustedInputError
from qubes_vpn.wire.control import ControlPacket
from qubes_vpn.wire.opcode import Opcode
from tests.unit.engine.pair import EPOCH, HERE, WRAPS, profiles

NOW = Now(1000.0, EPOCH)
# opcodes in front, so that not all of it falls at the first byte
DATAGRAMS = st.builds(
    lambda opcode, rest: bytes([opcode]) + rest,
    st.sampled_from([0x38, 0x40, 0x50, 0x58, 0x20, 0x28, 0x18, 0x39]),
    st.binary(max_size=400),
) | st.binary(max_size=1500)


@given(st.sampled_from(WRAPS), DATAGRAMS)
def test_any_first_packet_has_a_verdict(wrap, datagram):
    _, profile = profiles(wrap)
    greeter = Greeter(profile, random.Random(1).randbytes)
    try:
        verdict = greeter.judge(datagram, HERE, NOW)
    except UntrustedInputError:
        return
    assert isinstance(verdict, Answer | Welcome)
    assert isinstance(verdict, Answer) or wrap == "plain"


@given(st.sampled_from(WRAPS), st.lists(DATAGRAMS, max_size=20))
def test_any_history_leaves_no_session_of_nobody(wrap, datagrams):
    _, profile = profiles(wrap)
    server = ServerEngine(profile, entropy=random.Random(1).randbytes)
    for datagram in datagrams:
        server.receive(datagram, HERE, NOW)
    assert len(server) == 0
    for effect in iter(server.poll, None):
        assert isinstance(effect, SendTo)
    assert sum(server.drops.values()) <= len(datagrams)


@given(st.lists(DATAGRAMS, max_size=30), st.data())
def test_a_session_survives_or_ends_but_never_raises(datagrams, data):
    """After the cookie, bytes of any kind under the right session id."""
    _, profile = profiles("plain")
    server = ServerEngine(profile, entropy=random.Random(1).randbytes)
    wrap, sid = PlainWrap(), bytes(range(1, 9))
    reset = ControlPacket(
        Opcode.P_CONTROL_HARD_RESET_CLIENT_V2, 0, sid, packet_id=0
    )
    server.receive(wrap.wrap(reset, 0), HERE, NOW)
    answer = wrap.unwrap(server.poll().datagram, 0)
    ack = ControlPacket(Opcode.P_ACK_V1, 0, sid, (0,), answer.session_id)
    server.receive(wrap.wrap(ack, 0), HERE, NOW)
    assert len(server) == 1
    for datagram in datagrams:
        forged = bytearray(datagram)
        forged[1:9] = sid
        if data.draw(st.booleans()):
            number = data.draw(st.integers(0, 15))
            payload = bytes(datagram[9:])
            forged = wrap.wrap(
                ControlPacket(
                    Opcode.P_CONTROL_V1, 0, sid, packet_id=number, payload=payload
                ),
                0,
            )  # fmt: skip
        server.receive(bytes(forged), HERE, NOW)
        assert len(server) <= 1
    removed = [
        e for e in iter(server.poll, None)
        if isinstance(e, ForClient) and isinstance(e.effect, Removed)
    ]  # fmt: skip
    assert len(removed) == 1 - len(server)
    server.expire(Now(2000.0, EPOCH + 1000))
    assert len(server) == 0
