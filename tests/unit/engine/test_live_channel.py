"""Data channel, keys and what a server says, live: one scenario each."""

import base64
import contextlib
import itertools
import re
import time
from ipaddress import ip_address

import pytest

from lab.openvpn import Settings
from qubes_vpn.config.profile import Credentials, parse_client_profile
from qubes_vpn.engine import effects
from qubes_vpn.engine.states import Established
from tests.unit.engine.live import icmp_echo, no_file, profile_of
from tests.unit.engine.test_live import StaticKey
from tests.unit.engine.test_live_scenarios import Management

pytestmark = [pytest.mark.netns, pytest.mark.interop]

GATEWAY = ip_address("10.8.0.1")
ALICE = Credentials("alice", "wonder land")


def settings_of(live):
    return live.of(effects.ApplySettings)[-1].settings


def is_up(live):
    return isinstance(live.engine.state, Established)


def end_of(live):
    live.run_until(lambda one: one.of(effects.Ended))
    (ended,) = live.of(effects.Ended)
    return ended


# --- ciphers and framings -----------------------------------------------------


@pytest.mark.parametrize(
    ("size", "digest", "proto"),
    [
        (size, digest, proto)
        for (size, digest), proto in zip(
            itertools.product(
                (128, 192, 256),
                ("SHA1", "SHA224", "SHA256", "SHA384", "SHA512"),
            ),
            itertools.cycle(("udp", "tcp")),
            strict=False,
        )
    ],
)
def test_cbc_by_key_and_digest(start_server, connect, size, digest, proto):
    cipher = f"AES-{size}-CBC"
    live = connect(start_server(cipher=cipher, auth=digest, proto=proto))
    assert live.engine.status.cipher == cipher
    for length in (0, 15, 16, 1000):
        live.received.clear()
        address = settings_of(live).ifconfig4.ip
        echo = icmp_echo(address, GATEWAY, length, bytes(2 * (length // 2)))
        live.send_data(echo)
        live.run_until(lambda one: any(p[0] == 0x45 for p in one.received))
        (answer,) = (p for p in live.received if p[0] == 0x45)
        assert len(answer) == len(echo)
    assert not live.channel.drops


FRAMINGS = (
    # the server's, what it pushes, ours
    (("comp-lzo no",), (), ("comp-lzo no",)),
    (("compress stub",), (), ("compress stub",)),
    (("compress stub-v2",), (), ("compress stub-v2",)),
    (("compress",), (), ("compress",)),
    (("comp-lzo no",), ("comp-lzo no",), ()),
    (("compress stub-v2",), ("compress stub-v2",), ()),
    # a server that leads clients away from compression
    (("compress migrate",), (), ("comp-lzo no",)),
    (("compress migrate",), (), ()),
)


@pytest.mark.parametrize(("theirs", "push", "ours"), FRAMINGS)
def test_framings_without_compression(
    start_server, connect, theirs, push, ours
):
    live = connect(start_server(extra=theirs, push=push, client_extra=ours))
    assert live.ping_through(GATEWAY)[20] == 0
    assert live.ping_through(GATEWAY)[20] == 0
    assert not live.channel.drops


def test_packets_without_a_peer_id(start_server, connect):
    server = start_server(client_extra=('pull-filter ignore "peer-id"',))
    live = connect(server)
    assert settings_of(live).peer_id is None
    assert live.ping_through(GATEWAY)[20] == 0
    sealed = live.channel.seal(bytes(20), time.monotonic())
    assert sealed[0] >> 3 == 6, "P_DATA_V1"


# --- keys ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "by_server"),
    [
        pytest.param("reneg-bytes 1500", False, marks=pytest.mark.long),
        ("reneg-pkts 12", False),
        pytest.param("reneg-bytes 1500", True, marks=pytest.mark.long),
        ("reneg-pkts 12", True),
    ],
)
def test_a_new_key_by_the_amount_of_traffic(
    start_server, connect, line, by_server
):
    theirs, ours = ((line,), ()) if by_server else ((), (line,))
    live = connect(start_server(extra=theirs, client_extra=ours))
    for _ in range(40):
        live.ping_through(GATEWAY)
        if live.engine.status.key_id:
            break
        live.run_until(_after(0.1))
    assert live.engine.status.key_id == 1
    assert live.ping_through(GATEWAY)[20] == 0
    assert not live.channel.drops


def _after(seconds):
    end = time.monotonic() + seconds
    return lambda _live: time.monotonic() >= end


@pytest.mark.slow
def test_the_old_key_goes_after_its_window(start_server, connect):
    server = start_server(client_extra=("tran-window 1", "hand-window 4"))
    live = connect(server, reneg=2)
    live.run_until(lambda one: one.of(effects.RemoveKeys))
    kinds = [type(one) for one in live.effects]
    assert kinds.index(effects.SwapKeys) < kinds.index(effects.RemoveKeys)
    assert live.of(effects.RemoveKeys)[0].slot == 1
    assert live.ping_through(GATEWAY)[20] == 0


# --- what is said of us -------------------------------------------------------


def peer_info(server):
    return dict(re.findall(r"peer info: ([A-Z_0-9a-z]+)=(.*)", server.log))


def test_who_we_say_we_are(start_server, connect):
    server = start_server()
    connect(server)
    info = peer_info(server)
    assert info["IV_PLAT"] == "linux"
    assert info["IV_CIPHERS"] == "AES-256-GCM"
    assert int(info["IV_PROTO"]) & 0b1000110, "data v2, push, exit notify"
    assert info["IV_MTU"] == "1600"
    assert not {"IV_HWADDR", "IV_PLAT_VER", "UV_ROOM"} & set(info)
    assert "used inconsistently" not in server.log


def test_what_we_say_when_the_profile_says_so(start_server, connect):
    lines = ("push-peer-info", "setenv UV_ROOM attic")
    server = start_server(client_extra=lines)
    connect(server)
    info = peer_info(server)
    assert info["UV_ROOM"] == "attic"
    # but nothing that tells one machine from another
    assert "IV_HWADDR" not in info


# --- logging in ---------------------------------------------------------------

TOKEN = """#!/bin/sh
{ read -r name; read -r password; } < "$1"
case "$name/$password" in "alice/wonder land"|bob/t0ken) exit 0;; esac
exit 1
"""


@pytest.fixture
def checked(start_server, tmp_path):
    """checked(...) -> a server that asks a script."""

    def start(*lines, **fields):
        script = tmp_path / "verify"
        script.write_text(TOKEN)
        script.chmod(0o700)
        extra = (
            *("script-security 2", f"tmp-dir {tmp_path}"),
            f"auth-user-pass-verify {script} via-file",
            *lines,
        )
        return start_server(extra=extra, **fields)

    return start


def test_a_token_comes_with_the_name_to_use_it(checked, attach):
    name = base64.b64encode(b"bob").decode()
    server = checked(
        push=("auth-token t0ken", f"auth-token-user {name}", "ping 2"),
        client_extra=("auth-user-pass",),
    )
    live = attach(profile_of(server), credentials=ALICE).run_until(is_up)
    assert live.engine.token == ("bob", "t0ken")
    live.close()
    later = attach(
        profile_of(server), credentials=ALICE, token=live.engine.token
    )
    later.run_until(is_up)
    server.wait_for("username 'bob'")


def test_only_the_password_is_asked_for(checked, attach, tmp_path):
    path = tmp_path / "name"
    path.write_text("alice\n")
    server = checked(client_extra=(f"auth-user-pass {path}",))
    live = attach(profile_of(server))
    (asked,) = live.of(effects.AskUser)
    assert asked.kind == "credentials"
    live.engine.answer("credentials", "alice", "wonder land", live.now())
    live.drain()
    live.run_until(is_up)


@pytest.mark.parametrize(
    ("mode", "retry", "again"),
    [
        ("none", False, False),
        ("nointeract", True, False),
        ("interact", True, True),
    ],
)
def test_a_refused_password_is_tried_as_the_profile_says(
    checked, attach, mode, retry, again
):
    server = checked(client_extra=("auth-user-pass", f"auth-retry {mode}"))
    wrong = Credentials("alice", "x")
    ended = end_of(attach(profile_of(server), credentials=wrong))
    assert ended.reason == "auth-failed"
    assert (ended.retry, ended.drop_credentials) == (retry, again)


# --- what the management of a server does -------------------------------------


@pytest.fixture
def managed(start_server, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(*words, **fields):
            path = tmp_path / "management"
            extra = (f"management {path} unix", *words)
            server = start_server(extra=extra, **fields)
            management = Management(path)
            stack.callback(management.link.close)
            return server, management

        yield start


def test_a_question_in_the_control_channel(managed, attach):
    server, management = managed(
        *("management-client-auth", "auth-user-pass-optional"),
        client_extra=("auth-user-pass",),
    )
    live = attach(profile_of(server), credentials=ALICE)
    live.run_until(lambda _: heard(management, ">CLIENT:ENV,END"))
    management.say('client-pending-auth 0 1 "CR_TEXT:R,E:Which code?" 45')
    live.run_until(lambda one: one.of(effects.AskUser))
    (asked,) = live.of(effects.AskUser)
    assert (asked.kind, asked.prompt, asked.echo) == (
        *("crtext", "Which code?"),
        True,
    )
    management.said = b""
    live.engine.answer("crtext", "", "4711", live.now())
    live.drain()
    live.run_until(lambda _: heard(management, ">CLIENT:CR_RESPONSE"))
    answer = re.search(r"CR_RESPONSE,0,1,(\S+)", management.said.decode())
    assert base64.b64decode(answer[1]) == b"4711"
    management.say("client-auth-nt 0 1")
    live.run_until(is_up)
    assert live.ping_through(GATEWAY)[20] == 0


def heard(management, pattern):
    """Whether it said that by now."""
    management.link.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        management.said += management.link.recv(4096)
    management.link.settimeout(10)
    return re.search(pattern, management.said.decode())


# --- goodbyes -----------------------------------------------------------------


def test_a_goodbye_in_the_data_channel(namespace, tmp_path, attach):
    """As peers know it that have no TLS, or are older than 2.6."""
    settings = Settings(address=ip_address("127.0.0.1"))
    with StaticKey(namespace, tmp_path, settings) as server:
        text = server.client_profile() + "explicit-exit-notify 2\n"
        live = attach(parse_client_profile(text, "live.ovpn", no_file))
        live.run_until(is_up)
        live.engine.stop(live.now())
        live.drain()
        server.wait_for("OCC exit message received by peer")
