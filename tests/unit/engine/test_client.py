"""The client engine with our server: what a server can ask of it."""

import math
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization

from qubes_vpn.config.login import NAME_ONLY
from qubes_vpn.config.model import Credentials, Remote
from qubes_vpn.crypto.control_wrap import PlainWrap, TlsCryptWrap
from qubes_vpn.engine import effects as do
from qubes_vpn.engine.client import ClientEngine
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.peer_info import PlaneFeatures
from qubes_vpn.engine.push_options import IvProto
from qubes_vpn.engine.states import (
    Asking,
    Challenged,
    Closed,
    Established,
    Negotiating,
    Pulling,
)
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import ConfigError
from qubes_vpn.wire.control import ControlPacket
from qubes_vpn.wire.opcode import Opcode
from tests.unit.engine.pair import (
    KEY,
    Faults,
    Pair,
    connected,
    pair,
    profiles,
    stranger,
)

LOGIN = Credentials("alice", "wonder land")


def up(wrap="tls-crypt", **fields):
    return pair(wrap, **fields).until(connected, limit=5)


def say(world, *texts, limit=2.0):
    """Let the server say this, and wait until it arrived."""
    (session, _), *_ = world.server.connected()
    data = b"".join(text.encode() + b"\0" for text in texts)
    return say_raw(world, session, data, limit)


def say_raw(world, session, data, limit=2.0):
    session._channel.say(data, world.now)
    world.server._settle(session)
    world.drain()
    end = world.time + limit
    return world.until(
        lambda one: one.time >= end or isinstance(one.client.state, Closed),
        limit=limit + 1,
        every=0.1,
    )


def silent(world):
    """Our server decides nothing: the client waits for settings."""
    world.server.decide = lambda *_: None
    return world


def waiting(features=None, **fields):
    ours, theirs = profiles("tls-crypt")
    ours = replace(ours, **fields)
    # a server waits no longer than this for its own decision
    theirs = replace(theirs, hand_window=600)
    world = Pair(ours, theirs, credentials=LOGIN, features=features)
    silent(world)
    return world.until(lambda one: isinstance(one.client.state, Pulling))


def push(world, *texts, limit=2.0):
    (session,) = world.server._sessions.values()
    data = b"".join(text.encode() + b"\0" for text in texts)
    return say_raw(world, session, data, limit)


def ended(world):
    (only,) = world.of(do.Ended)
    assert world.effects[-1] is only
    return only


# --- messages -----------------------------------------------------------------

REPLY = "PUSH_REPLY,ifconfig 10.9.0.2 255.255.255.0,topology subnet"


def test_waits_for_the_last_of_several_replies():
    world = waiting()
    push(world, f"{REPLY},push-continuation 2")
    assert isinstance(world.client.state, Pulling)
    push(world, "PUSH_REPLY,ping 7,cipher AES-256-GCM,push-continuation 1")
    settings = world.client.state.settings
    assert (settings.ping, str(settings.ifconfig4)) == (7, "10.9.0.2/24")


@pytest.mark.parametrize(
    "reply",
    [
        ["PUSH_REPLY,push-continuation 2"] * 65,
        [f"PUSH_REPLY,{'x' * 15000}"] * 5,
    ],
)
def test_replies_without_end_end_the_session(reply):
    if len(reply) < 10:
        reply = [f"{one},push-continuation 2" for one in reply]
    world = waiting()
    for one in reply:
        push(world, one, limit=0.2)
    assert world.of(do.Ended)[0].reason == "push-too-long"
    assert not world.of(do.InstallKeys)


def test_several_commands_in_one_record():
    world = waiting()
    push(world, f"{REPLY},cipher AES-256-GCM", "INFO_PRE,hello")
    assert isinstance(world.client.state, Established)
    assert world.of(do.Notice)[-1].text == "hello"


@pytest.mark.parametrize(
    "data",
    [
        b"PUSH_REPLY,ping 1\n2\0",
        b"PUSH_REPLY,ping 1\x7f\0",
        b"PUSH_REPLY,ping 12",
        b"PUSH_REPLY,ping 1\x01\0",
    ],
)
def test_what_is_no_message_is_counted(data):
    world = waiting()
    (session,) = world.server._sessions.values()
    say_raw(world, session, data)
    assert isinstance(world.client.state, Pulling)
    assert world.client.drops["message-rejected"] == 1


@pytest.mark.parametrize(
    "text",
    ["PUSH_REQUEST", "CR_RESPONSE,YQ==", "NONSENSE", "PUSH_UPDATE,ping 1"],
)
def test_messages_that_do_not_fit_are_counted(text):
    world = waiting()
    push(world, text)
    assert isinstance(world.client.state, Pulling)
    assert sum(world.client.drops.values()) == 1


@pytest.mark.parametrize(
    ("text", "reason", "retry", "advance"),
    [
        ("RESTART", "server-restart", True, "addr"),
        ("RESTART,[N]maintenance", "server-restart", True, "remote"),
        ("HALT,go away", "server-halt", False, "addr"),
        ("EXIT", "server-exit", True, "addr"),
    ],
)
def test_the_server_ends_the_session(text, reason, retry, advance):
    world = up()
    say(world, text)
    first = world.of(do.Ended)[0]
    found = (first.reason, first.retry, first.advance)
    assert found == (reason, retry, advance)
    at = world.effects.index(first)
    assert world.effects[at - 2 : at] == [do.CloseForwarding(), do.RemoveKeys()]
    if "," in text:
        assert first.detail == text.partition(",")[2].removeprefix("[N]")


@pytest.mark.parametrize(
    ("text", "reason", "retry", "advance", "backoff"),
    [
        ("AUTH_FAILED", "auth-failed", False, "no", 0),
        ("AUTH_FAILED,wrong", "auth-failed", False, "no", 0),
        ("AUTH_FAILED,TEMP", "auth-temp", True, "no", 0),
        (
            "AUTH_FAILED,TEMP[backoff 42,advance remote]:busy",
            *("auth-temp", True, "remote", 42),
        ),
        ("AUTH_FAILED,SESSION:gone", "auth-token", True, "no", 0),
    ],
)
def test_refusals(text, reason, retry, advance, backoff):
    world = waiting()
    push(world, text)
    first = world.of(do.Ended)[0]
    assert (first.reason, first.retry) == (reason, retry)
    assert (first.advance, first.backoff) == (advance, backoff)


@pytest.mark.parametrize(
    ("mode", "retry", "drop"),
    [
        ("none", False, False),
        ("nointeract", True, False),
        ("interact", True, True),
    ],
)
def test_auth_retry(mode, retry, drop):
    world = waiting(auth_retry=mode)
    push(world, "AUTH_FAILED")
    first = world.of(do.Ended)[0]
    assert (first.retry, first.drop_credentials) == (retry, drop)


def test_a_dynamic_challenge_is_answered_in_the_next_session():
    world = waiting(auth_user_pass=Credentials())
    push(world, "AUTH_FAILED,CRV1:R,E:state1:YWxpY2U=:Your PIN?")
    assert isinstance(world.client.state, Challenged)
    asked = world.of(do.AskUser)[-1]
    assert (asked.kind, asked.prompt, asked.echo) == (
        "challenge",
        "Your PIN?",
        True,
    )
    world.client.answer("challenge", "", "1234", world.now)
    world.drain()
    first = world.of(do.Ended)[0]
    assert first.next_credentials == Credentials("alice", "CRV1::state1::1234")
    assert "1234" not in repr(first)
    assert first.retry


def test_pending_authentication_extends_the_wait_and_shows_what_to_do():
    world = waiting()
    push(
        world,
        "AUTH_PENDING,timeout 300",
        "INFO_PRE,WEB_AUTH::https://example.org/login",
    )
    url = world.of(do.AskUser)[-1]
    assert (url.kind, url.prompt) == ("url", "https://example.org/login")
    assert 290 < url.timeout <= 300
    world.until(lambda one: one.time > 200, limit=300, every=5)
    assert isinstance(world.client.state, Pulling)
    push(world, f"{REPLY},cipher AES-256-GCM")
    assert isinstance(world.client.state, Established)


def test_pending_authentication_is_bounded():
    world = waiting(reneg_sec=200)
    push(world, "AUTH_PENDING,timeout 99999")
    assert world.client.state.deadline - world.time <= 100


def test_a_text_challenge_is_answered_at_once():
    world = waiting()
    push(world, "INFO_PRE,CR_TEXT:R,E:Which code?")
    asked = world.of(do.AskUser)[-1]
    assert (asked.kind, asked.prompt, asked.echo) == (
        "crtext",
        "Which code?",
        True,
    )
    sent = len(world.of(do.Send))
    world.client.answer("crtext", "", "99", world.now)
    world.drain()
    assert len(world.of(do.Send)) > sent


def test_no_settings_end_the_session_and_requests_are_repeated():
    world = waiting()
    world.until(lambda one: one.restarts, limit=100)
    assert world.of(do.Ended)[0].reason == "no-push-reply"


# --- settings -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("cipher BF-CBC", "cipher-refused"),
        ("cipher none", "cipher-refused"),
        ("cipher AES-128-CBC", "cipher-refused"),
        (
            "cipher AES-256-GCM,protocol-flags aead-epoch",
            "epoch-without-peer-id",
        ),
    ],
)
def test_unusable_settings_end_the_session_unapplied(options, reason):
    world = waiting()
    push(world, f"{REPLY},{options}")
    assert world.of(do.Ended)[0].reason == reason
    assert not world.of(do.ApplySettings)
    assert not world.of(do.InstallKeys)


def test_a_server_without_ncp_uses_the_fallback():
    world = waiting(data_ciphers_fallback="AES-256-CBC", auth="SHA256")
    push(world, REPLY)
    keys = world.of(do.InstallKeys)[0].keys
    assert (keys.cipher, keys.digest) == ("AES-256-CBC", "SHA256")
    assert len(keys.encrypt.hmac_key) == 32


def test_an_update_is_applied_whole_or_not_at_all():
    world = up()
    before = world.client.state.settings
    say(world, "PUSH_UPDATE,tun-mtu 1400,?unheard of")
    assert world.client.state.settings == replace(
        before, mtu=1400, refused=world.client.state.settings.refused
    )
    assert world.of(do.ApplySettings)[-1].settings.mtu == 1400
    say(world, "PUSH_UPDATE,tun-mtu 1300,cipher AES-128-GCM")
    assert world.of(do.Ended)[0].reason == "bad-push"
    assert 1300 not in [one.settings.mtu for one in world.of(do.ApplySettings)]


# --- credentials --------------------------------------------------------------


def with_login(world_profile=None, **engine):
    ours, theirs = profiles("tls-crypt")
    ours = replace(ours, auth_user_pass=Credentials(), **(world_profile or {}))
    theirs = replace(theirs, password_file="users")
    return Pair(ours, theirs, **engine)


def test_gives_name_and_password():
    world = with_login(credentials=LOGIN).until(connected, limit=5)
    (asked,) = world.asked
    assert (asked.username, asked.password) == ("alice", "wonder land")
    assert "wonder" not in repr(world.client._login)


def test_asks_before_anything_is_sent():
    world = with_login(credentials=Credentials("alice"))
    assert isinstance(world.client.state, Asking)
    assert world.of(do.AskUser)[0].kind == "credentials"
    assert not world.of(do.Send)
    world.client.answer("credentials", "", "secret", world.now)
    world.drain()
    world.until(connected, limit=5)
    assert (world.asked[0].username, world.asked[0].password) == (
        *("alice", "secret"),
    )


def test_asks_before_there_is_a_link():
    world = with_login(credentials=Credentials("alice"))
    world.effects.clear()
    client = world.client
    client.ask(world.now)
    world.drain()
    assert [type(one) for one in world.effects] == [do.AskUser]
    client.answer("credentials", "", "secret", world.now)
    world.drain()
    assert world.effects[-1] == do.Connect()
    assert not world.of(do.Send)
    client.attach(PlaneFeatures(occ=False), 1300)
    client.start(world.now)
    world.drain()
    world.until(connected, limit=5)
    (settings,) = world.of(do.ApplySettings)
    assert settings.settings.path_mtu < 1300 - 28


def test_connects_at_once_when_there_is_nothing_to_ask():
    world = with_login(credentials=LOGIN)
    world.effects.clear()
    world.client.ask(world.now)
    world.drain()
    assert world.effects == [do.Connect()]


def test_nobody_answers():
    world = with_login()
    world.until(lambda one: one.of(do.Ended), limit=130)
    assert ended(world).reason == "unanswered"


@pytest.mark.parametrize(
    ("concat", "password"),
    [(False, "SCRV1:d29uZGVyIGxhbmQ=:Nzc="), (True, "wonder land77")],
)
def test_a_static_challenge_is_part_of_the_password(concat, password):
    challenge = {
        "static_challenge": ("PIN", False),
        "static_challenge_concat": concat,
    }
    world = with_login(challenge, credentials=LOGIN)
    asked = world.of(do.AskUser)[0]
    assert (asked.kind, asked.prompt, asked.echo) == ("challenge", "PIN", False)
    world.client.answer("challenge", "", "77", world.now)
    world.drain()
    world.until(connected, limit=5)
    assert world.asked[0].password == password


def test_only_a_name_is_asked_for():
    world = with_login(credentials=NAME_ONLY)
    asked = world.of(do.AskUser)[0]
    assert (asked.kind, asked.prompt, asked.echo) == (
        *("username", "user name"),
        True,
    )
    world.client.answer("username", "", "alice", world.now)
    world.drain()
    world.until(connected, limit=5)
    assert world.asked[0].username == "alice"
    assert world.asked[0].password == "[[BLANK]]"


@pytest.mark.parametrize(
    ("filters", "token"),
    [((), ("bob", "x")), ((("ignore", "auth-token "),), None)],
)
def test_a_later_token_is_pushed_like_the_first(filters, token):
    world = with_login({"pull_filters": filters}, credentials=LOGIN)
    world.until(connected, limit=5)
    say(world, "PUSH_REPLY,auth-token x,auth-token-user Ym9i,ping 7")
    assert world.client.token == token


def test_a_pushed_token_replaces_the_password():
    world = with_login({"auth_nocache": True}, credentials=LOGIN)
    world.until(connected, limit=5)
    say(world, "PUSH_REPLY,auth-token SESS_ID_x")
    assert world.client.token == ("alice", "SESS_ID_x")
    assert world.client._login.credentials is None
    again = with_login(token=world.client.token).until(connected, limit=5)
    assert again.asked[0].password == "SESS_ID_x"


def test_a_refused_token_gives_way_to_the_password():
    ours, theirs = profiles("tls-crypt")
    ours = replace(ours, auth_user_pass=Credentials())
    world = silent(Pair(ours, theirs, credentials=LOGIN, token=("alice", "t")))
    world.until(lambda one: isinstance(one.client.state, Pulling))
    push(world, "AUTH_FAILED")
    first = world.of(do.Ended)[0]
    assert (first.reason, first.retry, first.drop_token) == (
        *("auth-token", True, True),
    )


# --- keys ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "counts"),
    [
        ({"reneg_bytes": 2000}, {}),
        ({"reneg_pkts": 30}, {}),
        ({}, {"key_packets": 0xFF000000}),
        ({}, {"key_blocks": 7 * 2**33}),
        ({}, {"decrypt_failures": 1 << 35}),
    ],
)
def test_a_reached_limit_makes_a_new_key(limits, counts):
    world = up(client={"reneg_sec": 0, **limits})
    for name, value in counts.items():
        setattr(world.traffic, name, value)
    if "key_packets" in counts:
        world.channel.primary.sent = counts["key_packets"]
    world.until(lambda one: one.client.status.key_id == 1, limit=60)
    assert world.restarts == 0


def test_jitter_stays_between_minimum_and_maximum():
    ours, _ = profiles(reneg_sec=100, reneg_sec_min=60)
    times = set()
    for number in range(50):
        engine = ClientEngine(
            ours,
            ours.remotes[0],
            entropy=lambda size, n=number: bytes([n * 5]) * size,
            traffic=Traffic(),
        )
        times.add(engine._dial.timing().reneg_sec)
    assert 60 <= min(times) < 65
    assert 95 < max(times) <= 100


def test_dynamic_tls_crypt_protects_later_keys():
    world = up("plain", client={"reneg_sec": 10})
    assert world.client.state.settings.dyn_tls_crypt
    world.until(lambda one: one.client.status.key_id == 2, limit=60)
    later = [
        datagram
        for _, to_server, datagram in world.wire.seen
        if to_server and datagram[0] >> 3 in (3, 4, 5) and datagram[0] & 7
    ]
    sid = world.client._channel.peer_session_id
    first = [d for _, to, d in world.wire.seen if to and not d[0] & 7]
    # acks carry the peer's session id: in the clear at first, never later
    assert any(sid in datagram for datagram in first)
    assert later
    assert not any(sid in datagram for datagram in later)


def test_a_later_key_in_a_static_wrap_is_refused():
    world = up("tls-crypt", client={"reneg_sec": 10})
    world.until(lambda one: one.client.status.key_id == 1, limit=60)
    channel = world.client._channel
    packet = ControlPacket(
        Opcode.P_ACK_V1,
        1,
        channel.peer_session_id,
        (0,),
        channel.session_id,
    )
    wrap = TlsCryptWrap(KEY, is_server=True, start=1000)
    world.client.receive(wrap.wrap(packet, world.now.unix), world.now)
    assert world.client.drops["bad-hmac"] == 1


def test_epoch_keys_when_the_server_says_so():
    world = waiting(PlaneFeatures(epoch=True))
    world.chat = lambda: None
    flags = "peer-id 5,protocol-flags tls-ekm aead-epoch"
    push(world, f"{REPLY},cipher AES-256-GCM,{flags}")
    keys = world.of(do.InstallKeys)[0].keys
    assert (keys.epoch, keys.peer_id) == (True, 5)
    assert len(keys.encrypt.cipher_key) == 32


@pytest.mark.parametrize("epoch", [True, False])
def test_a_plane_without_epoch_keys_does_not_offer_them(epoch):
    ours, theirs = profiles()
    world = Pair(ours, theirs, features=PlaneFeatures(epoch=epoch))
    info = world.client._dial._hello().peer_info
    bits = int(info.split("IV_PROTO=")[1].split()[0])
    assert bool(bits & IvProto.DATA_EPOCH) == epoch
    assert bits & IvProto.PUSH_UPDATE


# --- timers -------------------------------------------------------------------


def test_pings_when_nothing_else_is_sent():
    world = up()
    world.chat = lambda: None
    world.until(lambda one: len(one.of(do.SendData)) == 5, limit=60)
    assert world.traffic.ping_seen
    assert world.established


def test_ping_restart():
    world = up()
    world.wire.cut = True
    start = world.time
    world.until(lambda one: one.restarts, limit=100)
    assert world.of(do.Ended)[0].reason == "ping-restart"
    assert 39 <= world.time - start <= 42


@pytest.mark.parametrize(
    ("fields", "reason", "after"),
    [
        ({"session_timeout": 30}, "session-timeout", (30, 31)),
        ({"inactive": 20}, "inactive", (20, 40)),
    ],
)
def test_ends_by_time(fields, reason, after):
    world = up(client=fields)
    start = world.client.state.since
    world.chat = lambda: None
    world.until(lambda one: one.of(do.Ended), limit=100)
    assert ended(world).reason == reason
    assert not ended(world).retry
    assert after[0] <= world.time - start <= after[1]


def test_activity_holds_inactive_off():
    world = up(client={"inactive": 20})
    world.until(lambda one: one.time > 100, limit=200, every=5)
    assert world.established


def test_a_goodbye_over_the_data_channel_ends_the_session():
    world = up()
    world.traffic.peer_exited = True
    world.until(lambda one: one.restarts, limit=10)
    assert world.of(do.Ended)[0].reason == "server-exit"


def test_no_answer():
    ours, theirs = profiles()
    world = Pair(ours, theirs)
    world.wire.cut = True
    world.until(lambda one: one.restarts, limit=100)
    first = world.of(do.Ended)[0]
    assert (first.reason, first.code) == ("no-answer", "QV-501")
    assert 59 < world.time < 62


def test_stop_says_goodbye_and_the_server_hears_it():
    world = up()
    world.client.stop(world.now)
    world.drain()
    assert world.client.deadline() == math.inf
    ended(world)
    world.until(lambda one: one.removed, limit=5)
    assert "exit" in world.removed[0]


def test_an_answer_without_tls():
    ours, theirs = profiles()
    world = Pair(ours, theirs)
    world.until(lambda one: isinstance(one.client.state, Negotiating))
    world.wire.cut = True
    world.until(lambda one: one.restarts, limit=100)
    assert world.of(do.Ended)[0].reason == "handshake-timeout"


def test_one_packet_lost_for_most_of_the_window():
    """Only TLS packet 2 of the client is lost, for 50 of 60 seconds."""
    ours, theirs = profiles("plain")
    world = Pair(ours, theirs)
    send = world.wire.send

    def lossy(now, datagram, *, to_server):
        control = datagram[0] >> 3 == 4
        lost = control and to_server and now < 50 and len(datagram) > 900
        if not lost:
            send(now, datagram, to_server=to_server)

    world.wire.send = lossy
    world.until(connected, limit=58)
    assert world.restarts == 0
    assert world.time > 50


@pytest.mark.parametrize("wrap", ["plain", "tls-auth", "tls-crypt"])
def test_the_smallest_control_packets(wrap):
    ours, theirs = profiles(wrap, max_packet_size=154)
    world = Pair(ours, theirs, faults=Faults(delay=0.2))
    world.until(connected, limit=60)
    control = [d for _, _, d in world.wire.seen if d[0] >> 3 not in (6, 9)]
    assert max(map(len, control)) <= 154 - 28


def test_a_server_of_another_authority():
    ours, theirs = profiles()
    other = replace(ours.server_check, ca=stranger().certificate)
    world = Pair(replace(ours, server_check=other), theirs)
    world.until(lambda one: one.restarts, limit=5)
    first = world.of(do.Ended)[0]
    assert first.code in {"QV-543", "QV-549"}
    assert first.retry
    assert not world.of(do.InstallKeys)
    # the server is told why, by an alert
    world.until(lambda one: one.removed, limit=5)
    assert world.removed[0].startswith("tls-alert")


def test_an_encrypted_key_waits_for_its_passphrase():
    ours, theirs = profiles()
    key = serialization.load_pem_private_key(ours.identity.key, None)
    sealed = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"open sesame"),
    )
    ours = replace(ours, identity=replace(ours.identity, key=sealed))
    world = Pair(ours, theirs)
    assert world.of(do.AskUser)[0].kind == "passphrase"
    world.client.answer("passphrase", "", "open sesame", world.now)
    world.drain()
    world.until(connected, limit=5)
    wrong = Pair(ours, theirs)
    wrong.client.answer("passphrase", "", "guess", wrong.now)
    wrong.drain()
    assert ended(wrong).reason == "wrong-passphrase"


def test_static_keys_need_no_server():
    ours, _ = profiles("plain")
    ours = replace(
        ours,
        secret=(KEY, None),
        pull=False,
        cipher="AES-256-CBC",
        ifconfig=("10.0.0.2", "10.0.0.1"),
        ping=10,
        ping_restart=60,
    )
    engine = ClientEngine(
        ours, ours.remotes[0], entropy=bytes, traffic=Traffic()
    )
    engine.start(Now(0.0, 0.0))
    found = list(iter(engine.poll, None))
    assert [type(one) for one in found] == [
        do.InstallKeys,
        do.ApplySettings,
        do.OpenForwarding,
        do.Progress,
    ]
    assert found[0].keys.static
    assert found[0].keys.encrypt == found[0].keys.decrypt
    engine.expire(Now(10.0, 0.0))
    assert isinstance(engine.poll(), do.SendData)
    engine.expire(Now(60.0, 0.0))
    assert list(iter(engine.poll, None))[-1].reason == "ping-restart"


# --- what must change nothing ---------------------------------------------------


def forged_reset(world):
    packet = ControlPacket(
        Opcode.P_CONTROL_HARD_RESET_SERVER_V2,
        0,
        b"intruder",
        (0,),
        world.client._channel.session_id,
        0,
    )
    return PlainWrap().wrap(packet, 0.0)


def test_a_forged_reset_does_not_touch_a_live_session():
    world = up("plain")
    for _ in range(60):
        world.client.receive(forged_reset(world), world.now)
        end = world.time + 1
        world.until(lambda one, end=end: one.time >= end, limit=2)
    assert world.client.drops["foreign-session"] == 60
    assert world.restarts == 0
    assert world.established


def test_a_reset_that_answers_nothing_of_ours_is_not_believed():
    ours, theirs = profiles("plain")
    world = Pair(ours, theirs)
    packet = ControlPacket(
        Opcode.P_CONTROL_HARD_RESET_SERVER_V2, 0, b"intruder", (), None, 0
    )
    world.client.receive(PlainWrap().wrap(packet, 0.0), world.now)
    foreign = replace(packet, acks=(0,), peer_session_id=b"someone!")
    world.client.receive(PlainWrap().wrap(foreign, 0.0), world.now)
    assert world.client.drops == {"unasked-reset": 1, "foreign-acks": 1}
    world.until(connected, limit=5)


@pytest.mark.parametrize("size", [0, 1, 8, 9, 13, 2049, 65507])
@pytest.mark.parametrize("wrap", ["plain", "tls-crypt"])
def test_any_bytes_are_only_counted(wrap, size):
    world = up(wrap)
    for opcode in range(32):
        for key_id in range(8):
            data = bytes([opcode << 3 | key_id]) + b"\1" * (size - 1)
            world.client.receive(data[:size], world.now)
    assert sum(world.client.drops.values()) == 256
    assert world.established


@pytest.mark.parametrize("wrap", ["tls-auth", "tls-crypt", "tls-crypt-v2"])
def test_replayed_control_packets_change_nothing(wrap):
    world = up(wrap)
    seen = [
        d for _, to, d in world.wire.seen if not to and d[0] >> 3 not in (6, 9)
    ]
    sent = len(world.of(do.Send))
    for datagram in seen:
        world.client.receive(datagram, world.now)
    assert world.client.drops["replay"] == len(seen)
    world.drain()
    assert len(world.of(do.Send)) == sent


def test_a_soft_reset_before_the_keys_is_ignored():
    ours, theirs = profiles("plain")
    world = Pair(ours, theirs)
    world.until(lambda one: isinstance(one.client.state, Negotiating))
    channel = world.client._channel
    packet = ControlPacket(
        Opcode.P_CONTROL_SOFT_RESET_V1, 1, channel.peer_session_id, (), None, 0
    )
    for _ in range(1000):
        world.client.receive(PlainWrap().wrap(packet, 0.0), world.now)
    assert world.client.drops["foreign-key-id"] == 1000
    world.until(connected, limit=5)


# --- profiles -------------------------------------------------------------------


def test_a_profile_that_tls_cannot_use_is_refused_at_once():
    ours, _ = profiles()
    with pytest.raises(ConfigError):
        ClientEngine(
            replace(ours, identity=replace(ours.identity, key=b"no key")),
            Remote("192.0.2.1"),
            entropy=bytes,
            traffic=Traffic(),
        )
