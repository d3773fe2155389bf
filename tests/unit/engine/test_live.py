"""The client engine against Debian's openvpn."""

import signal
import time
from ipaddress import ip_address

import pytest

from lab.openvpn import Server, Settings, Wrap, _Program, wrap_keys
from qubes_vpn.config.profile import Credentials, parse_client_profile
from qubes_vpn.engine import effects
from qubes_vpn.engine.states import Challenged, Closed, Established
from tests.unit.engine.live import Live, icmp_echo, no_file, profile_of

pytestmark = [pytest.mark.netns, pytest.mark.interop]

LOOPBACK = ip_address("127.0.0.1")
GATEWAY = ip_address("10.8.0.1")


@pytest.mark.parametrize("wrap", Wrap)
def test_connects_pings_and_says_goodbye(start_server, connect, wrap):
    server = start_server(wrap=wrap)
    live = connect(server)
    assert live.ping_through(GATEWAY)[20] == 0
    live.engine.stop(live.now())
    live.drain()
    server.wait_for("CC-EEN exit message received by peer")
    assert [type(one) for one in live.effects[-4:]] == [
        effects.CloseForwarding,
        effects.Send,
        effects.RemoveKeys,
        effects.Ended,
    ]


@pytest.mark.parametrize(
    "cipher",
    ["AES-256-GCM", "AES-192-GCM", "AES-128-GCM", "CHACHA20-POLY1305"],
)
@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_ciphers_and_transports(start_server, connect, cipher, proto):
    server = start_server(cipher=cipher, proto=proto, wrap=Wrap.TLS_AUTH)
    live = connect(server)
    assert live.ping_through(GATEWAY)[20] == 0
    assert live.engine.status.cipher == cipher
    assert server.ciphers() == [cipher]


@pytest.mark.parametrize("tls_max", ["1.2", "1.3"])
def test_tls_versions_with_key_exporter_and_without(
    start_server, connect, tls_max
):
    server = start_server(tls_max=tls_max, wrap=Wrap.PLAIN)
    live = connect(server)
    assert live.ping_through(GATEWAY)[20] == 0
    assert live.engine.status.tls.startswith(f"TLSv{tls_max} ")
    assert live.engine.status.server_name


@pytest.mark.parametrize("wrap", [Wrap.PLAIN, Wrap.TLS_CRYPT])
@pytest.mark.parametrize("ours", [True, False], ids=["we", "server"])
@pytest.mark.slow
def test_renegotiates_while_traffic_flows(start_server, connect, wrap, ours):
    server = start_server(wrap=wrap, reneg=0 if ours else 2)
    live = connect(server, reneg=2 if ours else 0)
    seen = set()
    for _ in range(90):
        live.ping_through(GATEWAY)
        seen.add(live.engine.status.key_id)
        if {0, 1, 2} <= seen:
            break
        live.run_until(_after(0.15))
    assert {0, 1, 2} <= seen
    assert isinstance(live.engine.state, Established)
    assert len(live.of(effects.SwapKeys)) >= 1
    assert not live.channel.drops


def _after(seconds):
    end = time.monotonic() + seconds
    return lambda _live: time.monotonic() >= end


@pytest.mark.slow
def test_both_sides_renegotiate_at_once(start_server, connect):
    server = start_server(reneg=2)
    live = connect(server, reneg=2)
    live.run_until(_after(5))
    assert live.engine.status.key_id >= 2
    assert live.ping_through(GATEWAY)[20] == 0


def test_user_and_password(start_server, namespace, connect):
    server = start_server(users=(("alice", "wonder land"),))
    profile = profile_of(server)
    live = Live(
        namespace, profile, credentials=Credentials("alice", "wonder land")
    )
    live.run_until(lambda one: isinstance(one.engine.state, Established))
    live.close()


def test_a_wrong_password_ends_with_the_servers_reason(start_server, namespace):
    server = start_server(users=(("alice", "wonder land"),))
    live = Live(
        namespace, profile_of(server), credentials=Credentials("alice", "x")
    )
    live.run_until(lambda one: isinstance(one.engine.state, Closed))
    (ended,) = live.of(effects.Ended)
    assert (ended.reason, ended.code) == ("auth-failed", "QV-510")
    assert not ended.retry
    assert not live.of(effects.OpenForwarding)
    live.close()


def test_asks_for_what_the_profile_does_not_say(start_server, namespace):
    server = start_server(users=(("alice", "wonder land"),))
    live = Live(namespace, profile_of(server))
    (asked,) = live.of(effects.AskUser)
    assert asked.kind == "credentials"
    assert not live.of(effects.Send)
    live.engine.answer("credentials", "alice", "wonder land", live.now())
    live.drain()
    live.run_until(lambda one: isinstance(one.engine.state, Established))
    live.close()


def test_the_servers_end_ends_the_session(start_server, connect):
    server = start_server(extra=("explicit-exit-notify 2",))
    live = connect(server)
    server.signal(signal.SIGTERM)
    live.run_until(_has_ended)
    (ended,) = live.of(effects.Ended)
    assert (ended.reason, ended.retry) == ("server-restart", True)
    assert ended.advance == "remote"
    assert live.effects.index(ended) > live.effects.index(
        live.of(effects.CloseForwarding)[0]
    )


def test_a_dead_server_is_noticed_by_ping_restart(start_server, connect):
    extra = ("pull-filter ignore ping", "ping 1", "ping-restart 2")
    server = start_server(client_extra=extra)
    live = connect(server)
    server.signal(signal.SIGKILL)
    live.run_until(_has_ended)
    assert live.of(effects.Ended)[0].reason == "ping-restart"


def _has_ended(live):
    return bool(live.of(effects.Ended))


def test_a_refused_cipher_is_a_reason(start_server, connect):
    server = start_server(cipher="AES-128-GCM")
    live = connect(server, cipher="AES-256-GCM")
    assert live.of(effects.Ended)[0].reason in {"cipher-refused", "auth-failed"}
    assert not live.of(effects.OpenForwarding)


@pytest.mark.parametrize("size", [1250, 500])
def test_the_wrapped_key_comes_again_for_a_cookie(start_server, connect, size):
    live = connect(
        start_server(
            wrap=Wrap.TLS_CRYPT_V2,
            force_cookie=True,
            client_extra=(f"max-packet-size {size}",),
        )
    )
    assert live.ping_through(GATEWAY)[20] == 0
    opcodes = [one.datagram[0] >> 3 for one in live.of(effects.Send)]
    assert opcodes[0] == 10
    assert 11 in opcodes


def test_settings_that_need_many_messages(start_server, connect):
    routes = tuple(f"route 172.16.{i}.0 255.255.255.0" for i in range(120))
    live = connect(start_server(push=("ping 2", *routes)))
    settings = live.of(effects.ApplySettings)[0].settings
    assert len([r for r in settings.routes if "172.16" in str(r)]) == 120


def test_a_server_without_negotiation_of_ciphers(start_server, connect):
    extra = ("cipher AES-256-CBC", "data-ciphers-fallback AES-256-CBC")
    server = start_server(
        extra=extra,
        cipher="AES-256-CBC",
        client_extra=extra,
    )
    live = connect(server)
    assert live.engine.status.cipher == "AES-256-CBC"
    assert live.ping_through(GATEWAY)[20] == 0


@pytest.mark.slow
def test_a_token_is_used_for_later_keys(start_server, namespace):
    server = start_server(
        users=(("alice", "wonder land"),),
        extra=("auth-gen-token 600 120",),
        reneg=2,
    )
    live = Live(
        namespace,
        profile_of(server, reneg=0),
        credentials=Credentials("alice", "wonder land"),
    )
    live.run_until(lambda one: one.engine.status.key_id == 2)
    user, token = live.engine.token
    assert user == "alice"
    assert token.startswith("SESS_ID_AT_")
    assert live.ping_through(GATEWAY)[20] == 0
    live.close()


ASKING = """#!/bin/sh
{ read -r name; read -r password; } < "$1"
# the words "wonder land" and "4711", as static-challenge sends them
[ "$password" = SCRV1:d29uZGVyIGxhbmQ=:NDcxMQ== ] && exit 0
[ "$password" = "wonder land4711" ] && exit 0
[ "$name/$password" = "alice/[[BLANK]]" ] && exit 0
[ "$password" = CRV1::state7::4711 ] && exit 0
[ "$password" = "wonder land" ] && printf 'CRV1:R,E:state7:%s:Which code?' \\
    "$(printf %s "$name" | base64)" > "$auth_failed_reason_file"
[ "$password" = later ] && printf 'TEMP[backoff 7,advance remote]:full' \\
    > "$auth_failed_reason_file"
exit 1
"""


@pytest.fixture
def asking(start_server, tmp_path):
    """A server that has questions."""
    script = tmp_path / "verify"
    script.write_text(ASKING)
    script.chmod(0o700)
    return start_server(
        extra=(
            *("script-security 2", f"tmp-dir {tmp_path}"),
            f"auth-user-pass-verify {script} via-file",
        ),
        client_extra=("auth-user-pass",),
    )


def _is(state):
    return lambda live: isinstance(live.engine.state, state)


ALICE = Credentials("alice", "wonder land")


def test_a_question_is_answered_in_a_session_of_its_own(asking, attach):
    profile = profile_of(asking)
    live = attach(profile, credentials=ALICE).run_until(_is(Challenged))
    (asked,) = live.of(effects.AskUser)
    assert (asked.kind, asked.prompt, asked.echo) == (
        *("challenge", "Which code?"),
        True,
    )
    live.engine.answer("challenge", "", "4711", live.now())
    live.drain()
    (ended,) = live.of(effects.Ended)
    assert (ended.reason, ended.advance) == ("challenge", "no")
    later = attach(profile, credentials=ended.next_credentials)
    later.run_until(_is(Established))
    assert later.ping_through(GATEWAY)[20] == 0


@pytest.mark.parametrize("how", ["", "concat"])
def test_a_question_that_the_profile_asks(asking, attach, how):
    text = asking.client_profile() + f'static-challenge "Which code?" 1 {how}\n'
    profile = parse_client_profile(text, "live.ovpn", no_file)
    live = attach(profile, credentials=ALICE)
    (asked,) = live.of(effects.AskUser)
    assert (asked.kind, asked.prompt, asked.echo) == (
        *("challenge", "Which code?"),
        True,
    )
    assert not live.of(effects.Send)
    live.engine.answer("challenge", "", "4711", live.now())
    live.drain()
    live.run_until(_is(Established))


def test_only_a_name_is_asked_for(asking, attach):
    text = asking.client_profile() + "auth-user-pass username-only\n"
    profile = parse_client_profile(text, "live.ovpn", no_file)
    live = attach(profile, credentials=profile.auth_user_pass)
    (asked,) = live.of(effects.AskUser)
    assert asked.kind == "username"
    live.engine.answer("username", "", "alice", live.now())
    live.drain()
    live.run_until(_is(Established))


def test_a_server_that_is_full_says_when_and_where(asking, attach):
    login = Credentials("alice", "later")
    live = attach(profile_of(asking), credentials=login).run_until(_has_ended)
    (ended,) = live.of(effects.Ended)
    assert (ended.reason, ended.retry) == ("auth-temp", True)
    assert (ended.backoff, ended.advance) == (7.0, "remote")
    assert ended.detail == "full"


class PointToPoint(Server):
    """openvpn as a TLS server for one peer, which pulls nothing."""

    def config(self):
        kept = ("dev ", "dev-type", "proto", "local", "port", "data-ciphers")
        lines = super().config().splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("<"))
        head = [line for line in lines[:at] if line.startswith(kept)]
        more = [
            *("tls-server", "dh none", "ifconfig 10.8.0.1 10.8.0.2"),
            *("ping 2", "reneg-sec 0", "disable-dco", "verb 4"),
        ]
        return "\n".join((*head, *more, *lines[at:])) + "\n"

    def start(self):
        _Program.start(self)
        self.wait_for("UDPv4 link local|Listening for incoming TCP")

    def client_profile(self, **changed):
        text = super().client_profile(**changed)
        return text.replace(
            "client\n", "tls-client\nifconfig 10.8.0.2 10.8.0.1\n", 1
        )


def test_two_points_agree_without_a_push(namespace, tmp_path, connect):
    settings = Settings(address=LOOPBACK, wrap=Wrap.PLAIN)
    with PointToPoint(namespace, tmp_path, settings) as server:
        live = connect(server)
        server.wait_for("P2P mode NCP negotiation result: .*cipher=AES-256-GCM")
        settings = live.of(effects.ApplySettings)[0].settings
        assert (settings.tls_ekm, settings.cipher) == (True, "AES-256-GCM")
        # the peer may still be setting up its device
        _ping_until_answered(live)


class StaticKey(PointToPoint):
    """openvpn with a static key: no TLS at all."""

    def config(self):
        lines = super().config().splitlines()
        at = next(i for i, line in enumerate(lines) if line.startswith("<"))
        dropped = ("tls-server", "dh ", "reneg-sec", "data-ciphers")
        head = [line for line in lines[:at] if not line.startswith(dropped)]
        return "\n".join((*head, *self.secret("0"))) + "\n"

    def secret(self, direction):
        key = wrap_keys(Wrap.TLS_AUTH)[0].strip()
        return (
            *(f"auth {self.settings.auth}", "cipher AES-256-CBC"),
            *("ping 2", f"key-direction {direction}"),
            f"<secret>\n{key}\n</secret>",
        )

    def client_profile(self, **changed):
        settings = self.settings
        proto = {"tcp": "tcp-client"}.get(settings.proto, settings.proto)
        lines = (
            *("dev tun", f"proto {proto}", "ifconfig 10.8.0.2 10.8.0.1"),
            f"remote {settings.address} {settings.port}",
            *self.secret("1"),
            "allow-deprecated-insecure-static-crypto",
        )
        return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("proto", "auth"), [("udp", "SHA512"), ("tcp", "SHA1")]
)
def test_a_static_key_needs_no_handshake(
    namespace, tmp_path, connect, proto, auth
):
    settings = Settings(address=LOOPBACK, auth=auth, proto=proto)
    with StaticKey(namespace, tmp_path, settings) as server:
        live = connect(server)
        _ping_until_answered(live)
        assert not live.of(effects.Send)
        live.engine.stop(live.now())
        live.drain()
        live.close()
        if proto == "tcp":
            return  # openvpn waits a second for nothing, and then listens
        # a later session begins its ids anew, at a later time
        time.sleep(1.0)
        _ping_until_answered(connect(server))
        assert "bad packet ID" not in server.log


def _ping_until_answered(live):
    address = live.of(effects.ApplySettings)[0].settings.ifconfig4.ip
    for number in range(50):
        live.send_data(icmp_echo(address, GATEWAY, number))
        live.run_until(_after(0.1))
        if any(packet[12:16] == GATEWAY.packed for packet in live.received):
            return
    pytest.fail("no answer")
