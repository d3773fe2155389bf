"""Pools, push options, tokens: what a server is made of."""

import base64
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.config.server_profile import (
    ClientConfig,
    ServerProfile,
    TokenOptions,
)
from qubes_vpn.engine.address_pool import Leases, pool4, pool6
from qubes_vpn.engine.auth_token import PREFIX, TokenMint, is_token
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.push_options import (
    PUSH_BUNDLE_SIZE,
    Abilities,
    IvProto,
    Lease,
    choose_cipher,
    push_messages,
    push_options,
)
from qubes_vpn.errors import SessionError
from qubes_vpn.wire.messages import PushReply, parse_messages

NET4 = IPv4Network("10.8.0.0/29")
NET6 = IPv6Network("fd00:8::/64")
NOW = Now(1000.0, 1_700_000_000.0)


def test_a_pool_gives_each_address_once_and_never_the_servers():
    pool = pool4(NET4, None)
    taken = [pool.take(client, f"c{client}") for client in range(6)]
    assert taken[-1] is None
    assert sorted(map(str, taken[:5])) == [f"10.8.0.{n}" for n in range(2, 7)]


def test_who_comes_back_gets_what_it_had():
    pool = pool4(NET4, None)
    first = pool.take(1, "alice")
    pool.take(2, "bob")
    pool.release(1)
    assert pool.take(3, "carol") != first
    pool.release(3)
    assert pool.take(4, "alice") == first


def test_a_full_pool_takes_what_is_only_remembered_oldest_first():
    pool = pool4(NET4, None)
    first = pool.take(0, "c0")
    for client in range(1, 5):
        pool.take(client, f"c{client}")
    for client in range(5):
        pool.release(client)
    assert pool.take(9, "new") == first
    assert "c0" not in pool.remembered()


def test_what_was_remembered_survives_a_restart():
    pool = pool4(NET4, None)
    had = {name: pool.take(i, name) for i, name in enumerate(("a", "b", "c"))}
    again = pool4(NET4, None)
    again.remember(pool.remembered() | {"evil": IPv4Address("192.0.2.1")})
    assert {n: again.take(i, n) for i, n in enumerate("cab")} == had
    assert again.take(7, "evil") in NET4


def test_an_ipv6_pool_begins_where_openvpns_does():
    pool = pool6(NET6, None)
    assert pool.take(1, "a") == IPv6Address("fd00:8::1000")
    assert pool.take(2, "b") == IPv6Address("fd00:8::1001")


def test_a_fixed_address_is_one_clients_alone():
    leases = Leases(ServerProfile(network4=NET4, network6=NET6))
    fixed = ClientConfig(ifconfig4=(IPv4Address("10.8.0.2"), "255.255.255.248"))
    assert leases.give(1, "a", fixed).address4 == IPv4Address("10.8.0.2")
    with pytest.raises(SessionError, match="no-address"):
        leases.give(2, "b", fixed)
    assert leases.give(3, "c", ClientConfig()).address4 != IPv4Address(
        "10.8.0.2"
    )
    own = ClientConfig(ifconfig4=(IPv4Address("10.8.0.1"), "255.255.255.248"))
    with pytest.raises(SessionError, match="no-address"):
        leases.give(4, "thief", own)
    leases.release(1)
    assert leases.give(2, "b", fixed).address4 == IPv4Address("10.8.0.2")


def test_a_fixed_address_outside_its_bounds_is_nobodys():
    bounds = IPv4Network("10.8.0.4/30")
    leases = Leases(ServerProfile(network4=NET4, push_constraint=bounds))
    low, high = (
        ClientConfig(ifconfig4=(IPv4Address(one), "255.255.255.248"))
        for one in ("10.8.0.3", "10.8.0.4")
    )
    with pytest.raises(SessionError, match="no-address"):
        leases.give(1, "a", low)
    assert leases.give(1, "a", high).address4 == IPv4Address("10.8.0.4")


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60))
def test_no_history_gives_one_address_to_two(history):
    pool = pool4(NET4, None)
    have: dict[int, IPv4Address] = {}
    for comes, client in history:
        if comes and client not in have:
            address = pool.take(client, f"c{client}")
            if address is None:
                assert len(have) == 5
                continue
            assert address not in have.values()
            have[client] = address
        elif not comes:
            pool.release(client)
            have.pop(client, None)


def abilities(**pairs):
    return Abilities.read(
        {name: str(value) for name, value in pairs.items()}, ""
    )


@pytest.mark.parametrize(
    ("info", "options", "expected"),
    [
        ({"IV_CIPHERS": "AES-128-GCM:AES-256-GCM"}, "", "AES-256-GCM"),
        ({"IV_CIPHERS": "aes-128-gcm"}, "", "AES-128-GCM"),
        ({"IV_NCP": "2"}, "", "AES-256-GCM"),
        ({}, "V4,cipher AES-128-GCM,auth SHA1", "AES-128-GCM"),
        ({}, "V4,cipher BF-CBC", "AES-256-CBC"),
        ({}, "", "AES-256-CBC"),
    ],
)
def test_the_cipher_is_the_first_of_ours_that_the_client_has(
    info, options, expected
):
    profile = ServerProfile(data_ciphers_fallback="AES-256-CBC")
    assert choose_cipher(profile, Abilities.read(info, options)) == expected


@pytest.mark.parametrize(
    ("info", "options"),
    [
        ({"IV_CIPHERS": "BF-CBC"}, ""),
        ({}, "V4,cipher BF-CBC"),
        ({"IV_NCP": "9" * 5000}, ""),
    ],
)
def test_without_a_common_cipher_there_is_none(info, options):
    with pytest.raises(SessionError, match="no-shared-cipher"):
        choose_cipher(ServerProfile(), Abilities.read(info, options))


@pytest.mark.parametrize("text", ["", "-1", "٣", "1" * 10, "0x1", " 1"])
def test_a_number_of_a_peer_that_is_none_is_zero(text):
    assert Abilities.read({"IV_PROTO": text}, "").proto == 0


NO_CONFIG = ClientConfig()


def pushed(profile, config=NO_CONFIG, **info):
    lease = Lease(IPv4Address("10.8.0.2"), "255.255.255.248")
    return push_options(
        profile, config, lease, abilities(**info), ("peer-id 3",)
    )


@pytest.mark.parametrize("said", [IvProto.DNS_OPTION, IvProto.DNS_OPTION_V2])
def test_the_server_pushes_addresses_keepalive_and_its_own_options(said):
    profile = ServerProfile(
        network4=NET4,
        keepalive=(10, 60),
        push=("redirect-gateway def1", "dns server 0 address 10.8.0.1"),
    )
    assert pushed(profile, IV_PROTO=int(said)) == (
        "route-gateway 10.8.0.1",
        "topology subnet",
        "ping 10",
        "ping-restart 60",
        "redirect-gateway def1",
        "dns server 0 address 10.8.0.1",
        "ifconfig 10.8.0.2 255.255.255.248",
        "peer-id 3",
    )
    assert not [o for o in pushed(profile, IV_PROTO=0) if o.startswith("dns ")]


def test_a_client_config_removes_and_adds():
    profile = ServerProfile(
        network4=NET4, push=("route 10.1.0.0 255.255.0.0", "route-metric 5")
    )
    config = ClientConfig(
        push=("dhcp-option DNS 10.8.0.1",),
        push_remove=("route", "peer-id", "ifconfig"),
    )
    options = pushed(profile, config)
    assert "route 10.1.0.0 255.255.0.0" not in options
    assert "route-metric 5" in options
    assert "dhcp-option DNS 10.8.0.1" in options
    assert {"peer-id 3", "ifconfig 10.8.0.2 255.255.255.248"} <= set(options)
    reset = pushed(profile, ClientConfig(push_reset=True))
    assert "route-metric 5" not in reset


def test_the_mtu_is_pushed_to_clients_that_understand_it():
    profile = ServerProfile(network4=NET4, tun_mtu=1600)
    assert "tun-mtu 1500" in pushed(profile, IV_MTU=1500)
    assert "tun-mtu 1600" in pushed(profile, IV_MTU=1700)
    assert not [o for o in pushed(profile) if o.startswith("tun-mtu")]


@given(st.lists(st.text("abc 0123.", min_size=1, max_size=200), max_size=60))
def test_many_options_arrive_whole_and_in_order(options):
    options = tuple(option.strip() or "x" for option in options)
    messages = push_messages(options)
    assert all(len(message) <= PUSH_BUNDLE_SIZE for message in messages)
    replies = [m for raw in messages for m in parse_messages(raw)]
    assert all(isinstance(reply, PushReply) for reply in replies)
    assert sum((reply.options for reply in replies), ()) == options
    if len(replies) > 1:
        *first, last = (reply.continuation for reply in replies)
        assert set(first) == {2}
        assert last == 1


def test_an_option_that_no_message_can_carry_is_an_error():
    with pytest.raises(SessionError, match="push-too-long"):
        push_messages(("x" * 1100,))


def mint(lifetime=0, seed=1, **options):
    return TokenMint(
        TokenOptions(lifetime, secret=bytes(range(128)), **options),
        3600,
        Random(seed).randbytes,
    )


def later(seconds):
    return Now(NOW.mono + seconds, NOW.unix + seconds)


def test_a_token_is_for_its_user_and_for_a_time():
    token = mint().make("alice", NOW)
    assert is_token(token)
    assert mint(seed=2).check("alice", token, later(7199))
    assert not mint().check("alice", token, later(7200))
    assert not mint().check("bob", token, NOW)
    assert not mint().check("alice", token, later(-10))
    limited = mint(lifetime=100)
    assert limited.check("alice", token, later(100))
    assert not limited.check("alice", token, later(101))


def test_a_renewed_token_keeps_the_beginning_of_its_session():
    first = mint().make("alice", NOW)
    second = mint().make("alice", later(3000), first)
    assert mint(lifetime=5000).check("alice", second, later(4999))
    assert not mint(lifetime=5000).check("alice", second, later(5001))
    assert second[len(PREFIX) :][:16] == first[len(PREFIX) :][:16]


def test_no_byte_of_a_token_can_be_changed():
    token = mint().make("alice", NOW)
    content = base64.b64decode(token[len(PREFIX) :])
    for index in range(len(content)):
        changed = bytearray(content)
        changed[index] ^= 1
        forged = PREFIX + base64.b64encode(changed).decode()
        assert is_token(forged)
        assert not mint().check("alice", forged, NOW)
    other = TokenMint(TokenOptions(), 3600, Random(9).randbytes)
    assert not other.check("alice", token, NOW)


@pytest.mark.parametrize("text", ["", PREFIX, PREFIX + "!" * 80, "x" * 91])
def test_what_is_no_token_is_not_one(text):
    assert not mint().check("alice", text, NOW)
