"""What a peer can say that hardly any peer says: each has its answer."""

from dataclasses import replace

import pytest

from qubes_vpn.crypto.cbc import CbcCipher
from qubes_vpn.engine import effects as do
from qubes_vpn.engine.data_key import PACKET_ID_MAX
from qubes_vpn.engine.keying import KeySession
from qubes_vpn.engine.path_mtu import answers, overhead
from qubes_vpn.engine.peer_info import PlaneFeatures
from qubes_vpn.engine.proxy import REPLY_MAX
from tests.unit.engine.packets import channels, direction, ipv4
from tests.unit.engine.pair import Pair, Wire, connected, profiles
from tests.unit.engine.test_client import (
    LOGIN,
    REPLY,
    ended,
    push,
    say,
    up,
    waiting,
)
from tests.unit.engine.test_proxy import challenge, http, socks

# --- the key exchange ---------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [b"\0\0\0\0\2", b"\0\0\0\0\2" + bytes(64), b"junk", b"\0\0\0\0\3" * 40],
)
def test_a_key_exchange_that_is_none_ends_the_session(monkeypatch, answer):
    honest = KeySession._say_hello

    def say_hello(self):
        if self._is_server:
            self._ours = self._hello()
            self.tls.write(answer)
        else:
            honest(self)

    monkeypatch.setattr(KeySession, "_say_hello", say_hello)
    world = Pair(*profiles())
    world._restart = lambda: None
    world.until(lambda one: one.of(do.Ended), limit=5)
    assert (ended(world).reason, ended(world).code) == (
        "bad-key-method",
        "QV-533",
    )
    assert ended(world).retry


# --- messages -----------------------------------------------------------------


def test_a_name_for_the_token_that_is_none_is_not_used():
    world = waiting(auth_user_pass=LOGIN)
    more = "cipher AES-256-GCM,auth-token SESS_ID_x,auth-token-user no!"
    push(world, f"{REPLY},{more}")
    assert world.client.token == (LOGIN.username, "SESS_ID_x")


def test_an_update_in_parts_waits_for_the_last():
    world = up()
    before = world.client.state.settings
    say(world, "PUSH_UPDATE,dhcp-option DNS 10.9.0.1,push-continuation 2")
    assert world.client.state.settings == before
    say(world, "PUSH_UPDATE,route 10.20.0.0 255.255.0.0,push-continuation 1")
    after = world.client.state.settings
    assert [str(one) for one in after.dns] == ["10.9.0.1"]
    assert "10.20.0.0/16" in [str(one.network) for one in after.routes]


def test_an_address_to_open_is_shown_and_printable():
    world = waiting()
    push(world, "INFO_PRE,OPEN_URL:https://vpn.example/in\x7f")
    assert not world.of(do.AskUser)
    push(world, "INFO_PRE,OPEN_URL:https://vpn.example/in")
    (asked,) = world.of(do.AskUser)
    assert (asked.kind, asked.prompt) == ("url", "https://vpn.example/in")


# --- data ---------------------------------------------------------------------


def test_nothing_is_no_packet():
    client, server = channels("AES-256-GCM")
    assert not client.seal(b"", 1.0)
    assert client.drops == {"empty": 1}
    assert server.open(b"\x30", 1.0) is None
    assert sum(server.drops.values()) == 1


@pytest.mark.parametrize("inside", [b"", b"\0", b"\0\0\0"])
def test_an_authentic_packet_too_short_for_its_id_is_dropped(inside):
    client, server = channels("AES-256-CBC", digest="SHA256", peer_id=None)
    whole = client.seal(ipv4(), 1.0)
    theirs = CbcCipher("AES-256-CBC", "SHA256", direction("AES-256-CBC", 10))
    short = whole[:1] + theirs.seal(inside, bytes(16))
    assert server.open(short, 1.0) is None
    assert server.drops == {"short-data": 1}


def test_cbc_ids_end_too():
    client, _ = channels("AES-256-CBC", digest="SHA256")
    client.seal(ipv4(), 1.0)
    client._slots[0].sent = PACKET_ID_MAX
    assert not client.seal(ipv4(), 1.0)


@pytest.mark.parametrize(
    ("cipher", "digest", "peer_id"),
    [
        ("AES-256-GCM", "", 5),
        ("CHACHA20-POLY1305", "", None),
        ("AES-128-CBC", "SHA1", 5),
        ("AES-256-CBC", "SHA512", None),
    ],
)
def test_no_packet_is_longer_than_was_reckoned(cipher, digest, peer_id):
    client, _ = channels(cipher, digest=digest, peer_id=peer_id)
    settings = replace(
        up().client.state.settings,
        cipher=cipher,
        digest=digest or "SHA1",
        peer_id=peer_id,
    )
    most = overhead(settings, static=False)
    added = [
        len(client.seal(ipv4(bytes(size)), 1.0)) - len(ipv4(bytes(size)))
        for size in range(40)
    ]
    assert max(added) <= most <= max(added) + 16


# --- the path -----------------------------------------------------------------


class Narrow(Wire):
    """Datagrams that are larger are lost, both ways."""

    # the handshake has none that is longer
    size = 1210

    def send(self, now, datagram, *, to_server):
        if len(datagram) <= self.size:
            super().send(now, datagram, to_server=to_server)


def test_the_settings_follow_a_path_that_is_narrow():
    features = PlaneFeatures(occ=True)
    world = Pair(*profiles(), link_mtu=1500, features=features)
    world.wire = Narrow(world.wire.faults, world.dice)
    world.until(connected, limit=60)

    def answer():
        """What a server's data plane does."""
        for client in world.server_channels:
            for payload in answers(world.server.session(client).traffic):
                world.from_server(client, payload)

    world.chat = answer
    world.until(lambda one: one.client.path_known, limit=60, every=0.05)
    first, *_ = world.of(do.ApplySettings)
    found = world.of(do.ApplySettings)[-1].settings
    size = found.path_mtu + overhead(found, static=False)
    assert Narrow.size - 8 <= size <= Narrow.size
    assert first.settings.path_mtu > found.path_mtu
    assert world.law.forwarding


# --- proxies ------------------------------------------------------------------


def test_a_proxy_that_hangs_up_in_the_middle():
    asking = http()
    asking.begin()
    with pytest.raises(Exception, match="http-proxy: it hangs up"):
        asking.closed()


def test_an_offer_of_a_proxy_that_cannot_be_printed_is_passed_over():
    asking = http("auto", "me", "secret")
    asking.begin()
    offers = 'Digest realm="r\x0b", nonce="n"', 'Basic realm="x"'
    asking.feed(challenge(*offers))
    assert asking.again
    asking.closed()
    assert b"Authorization: Basic " in asking.begin()


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        ([b"\5" * (REPLY_MAX + 1)], "does not end"),
        ([b"\5\0", b"\4\0\0\1\0"], "does not speak SOCKS5"),
    ],
)
def test_socks_replies_that_are_none(replies, words):
    asking = socks()
    asking.begin()
    *before, last = replies
    for reply in before:
        asking.feed(reply)
    with pytest.raises(Exception, match=f"socks-proxy: .*{words}"):
        asking.feed(last)


def test_a_socks_password_byte_by_byte_and_one_that_is_too_long():
    asking = socks("me", "pass")
    asking.begin()
    asking.feed(b"\5\2")
    assert asking.feed(b"\1") == b""
    assert asking.feed(b"\0").startswith(b"\5\1\0")
    asking = socks("me", "p" * 256)
    asking.begin()
    with pytest.raises(Exception, match="name or password too long") as caught:
        asking.feed(b"\5\2")
    assert "ppp" not in str(caught.value)
