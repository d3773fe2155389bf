"""Whatever a server says inside TLS: the law holds, and nothing escapes."""

from hypothesis import given
from hypothesis import strategies as some

from qubes_vpn.engine import effects as do
from qubes_vpn.engine.states import Closed
from tests.unit.engine.pair import Pair, connected, profiles

OPTIONS = (
    *("ifconfig 10.9.0.2 255.255.255.0", "ifconfig 10.9.0.2 0.0.0.0"),
    *("topology subnet", "topology net30", "peer-id 3", "peer-id 99999999999"),
    *("cipher AES-256-GCM", "cipher AES-128-GCM", "cipher none", "cipher"),
    *("ping 1", "ping-restart 2", "ping-exit 1", "inactive 1", "ping -5"),
    *("tun-mtu 1400", "tun-mtu 1", "protocol-flags cc-exit tls-ekm"),
    *("protocol-flags dyn-tls-crypt", "protocol-flags aead-epoch"),
    *("route 0.0.0.0 0.0.0.0", "route 1.2.3", "redirect-gateway def1 ipv6"),
    *("auth-token x", "auth-token", "auth-token-user %%%", "compress lz4"),
    *("dhcp-option DNS 10.9.0.1", "dns server 1 address 10.9.0.1"),
    *("push-continuation 2", "push-continuation 1", "session-timeout 1"),
    *(
        "up /bin/sh",
        "-route",
        "?-dns",
        "-?topology",
        "?unknown x",
        "keepalive 1 2",
    ),
)
MESSAGES = some.one_of(
    some.tuples(
        some.sampled_from(["PUSH_REPLY", "PUSH_UPDATE"]),
        some.lists(some.sampled_from(OPTIONS), max_size=8),
    ).map(lambda one: ",".join((one[0], *one[1]))),
    some.sampled_from(
        [
            *("AUTH_FAILED", "AUTH_FAILED,TEMP[backoff 9", "AUTH_PENDING"),
            "AUTH_FAILED,CRV1:R,E:s:YWxpY2U=:pin?",
            *("AUTH_FAILED,CRV1:::::", "AUTH_FAILED,CRV1:R:s:!:x"),
            *("AUTH_PENDING,timeout 5", "AUTH_PENDING,timeout -1", "EXIT"),
            *("RESTART", "RESTART,[PN]x", "HALT", "INFO,hello", "INFO_PRE,"),
            *("INFO_PRE,WEB_AUTH::https://x", "INFO_PRE,CR_TEXT:R,E:q"),
            *("INFO_PRE,WEB_AUTH", "INFO_PRE,OPEN_URL:", "PUSH_REQUEST", ""),
        ]
    ),
    some.text(max_size=40).filter(lambda text: "\0" not in text),
)
STEPS = some.lists(
    some.tuples(MESSAGES, some.floats(0, 5), some.booleans()), max_size=12
)


@given(before=STEPS, after=STEPS)
def test_any_conversation(before, after):
    ours, theirs = profiles("plain")
    world = Pair(ours, theirs)
    world.decide = lambda *_: None
    # the next session is not this test's
    world._restart = lambda: None
    _converse(world, before)
    world.server_channels.clear()
    if not isinstance(world.client.state, Closed):
        _converse(world, after)
    ends = world.of(do.Ended)
    assert len(ends) <= 1
    assert not ends or world.effects[-1] is ends[0]


def _converse(world, steps):
    world.until(_talks, limit=90)
    for text, wait, answers in steps:
        for session in list(world.server._sessions.values()):
            message = text.encode("utf-8", "surrogatepass") + b"\0"
            session._channel.say(message, world.now)
            world.server._settle(session)
        if answers:
            world.client.answer("challenge", "", "x", world.now)
            world.client.answer("crtext", "", "x", world.now)
        world.drain()
        end = world.time + wait
        world.until(lambda one, end=end: one.time >= end, limit=wait + 1)


def _talks(world):
    state = world.client.state
    return isinstance(state, Closed) or type(state).__name__ in {
        "Pulling",
        "Established",
        "Challenged",
    }


@given(seed=some.integers(0, 2**32), flips=some.lists(some.integers(0, 400)))
def test_bytes_of_the_handshake_changed_at_will(seed, flips):
    """Any byte of any control packet, without a wrap that would notice."""
    ours, theirs = profiles("plain")
    world = Pair(ours, theirs, seed=seed)
    send = world.wire.send
    places = iter(flips)

    def bend(now, datagram, *, to_server):
        at = next(places, None)
        if at is not None and not to_server:
            at %= len(datagram)
            changed = bytes([datagram[at] ^ 0x41])
            datagram = datagram[:at] + changed + datagram[at + 1 :]
        send(now, datagram, to_server=to_server)

    world.wire.send = bend
    world.until(connected, limit=900)
