"""A push, merged: what is applied, and what a server cannot do."""

from dataclasses import replace
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv6Interface,
    ip_address,
    ip_network,
)

import pytest

from qubes_vpn.config import push, tunnel
from qubes_vpn.config.directives import DIRECTIVES, Scope
from qubes_vpn.config.model import ClientProfile, Remote, ServerCheck
from qubes_vpn.config.pulled import merge
from qubes_vpn.errors import SessionError

REMOTE = Remote("192.0.2.10")
PROFILE = ClientProfile((REMOTE,), ServerCheck())
ADDRESS = "ifconfig 10.8.0.2 255.255.255.0"
ADDRESS6 = "ifconfig-ipv6 fd00::2/64 fd00::1"
SUBNET = ("topology subnet", ADDRESS, ADDRESS6)


def pulled(*options, profile=PROFILE, remote=REMOTE, base=SUBNET, **outside):
    return merge(profile, remote, (*base, *options), **outside)


def networks(settings):
    return {str(one.network) for one in settings.routes}


def refused(settings):
    return dict(settings.refused)


def test_addresses():
    settings = pulled()
    assert settings.ifconfig4 == IPv4Interface("10.8.0.2/24")
    assert settings.ifconfig6 == IPv6Interface("fd00::2/64")
    assert settings.peer4 is None
    assert (settings.topology, settings.refused) == ("subnet", ())


@pytest.mark.parametrize("topology", ["net30", "p2p", ""])
def test_a_peer_instead_of_a_network(topology):
    options = [f"topology {topology}"] if topology else []
    settings = pulled(*options, "ifconfig 10.8.0.6 10.8.0.5", base=())
    assert settings.ifconfig4 == IPv4Interface("10.8.0.6/32")
    assert settings.peer4 == IPv4Address("10.8.0.5")
    assert networks(settings) == {"10.8.0.5/32"}


def test_a_netmask_is_one_in_any_topology():
    settings = pulled("topology net30")
    assert settings.ifconfig4 == IPv4Interface("10.8.0.2/24")


def test_the_profile_s_own_addresses_hold_without_a_push():
    profile = replace(
        PROFILE,
        ifconfig=("10.1.0.2", "10.1.0.1"),
        ifconfig6=("fd01::2/64", "fd01::1"),
    )
    settings = pulled(profile=profile, base=())
    assert settings.ifconfig4 == IPv4Interface("10.1.0.2/32")
    assert settings.ifconfig6 == IPv6Interface("fd01::2/64")


def test_without_any_address_nothing_is_carried():
    settings = pulled("redirect-gateway ipv6", base=())
    assert not settings.default4
    assert not settings.default6
    assert settings.block_ipv4


@pytest.mark.parametrize(
    ("options", "default4", "default6"),
    [
        ((), True, True),
        (("redirect-gateway def1",), True, True),
        (("redirect-gateway !ipv4 ipv6",), False, True),
        (("route 10.0.0.0 255.0.0.0",), False, True),
        (("route-ipv6 2001:db8::/32",), True, False),
        (("route 10.0.0.0 255.0.0.0", "redirect-gateway def1"), True, True),
        (("route-ipv6 2001:db8::/32", "redirect-gateway ipv6"), True, True),
        (("route 0.0.0.0 0.0.0.0", "route-ipv6 ::/0"), True, True),
        (("route 0.0.0.0 128.0.0.0", "route 128.0.0.0 128.0.0.0"), True, True),
        (("route 0.0.0.0 128.0.0.0",), False, True),
        (("block-ipv6",), True, False),
    ],
)
def test_what_the_server_carries(options, default4, default6):
    settings = pulled(*options)
    assert (settings.default4, settings.default6) == (default4, default6)


def test_redirect_gateway_of_the_profile():
    profile = replace(PROFILE, redirect_gateway=("def1",))
    assert pulled("route 10.0.0.0 255.0.0.0", profile=profile).default4


def test_routes_of_the_profile_and_the_server():
    profile = replace(PROFILE, routes=((ip_network("10.1.0.0/16"), "", 3),))
    settings = pulled("route 10.2.0.0 255.255.0.0", profile=profile)
    assert networks(settings) == {
        "10.1.0.0/16",
        "10.2.0.0/16",
        "10.8.0.0/24",
        "fd00::/64",
    }
    assert settings.routes[0].metric == 3


def test_blocked_ipv6_has_no_routes_and_no_resolvers():
    settings = pulled(
        "block-ipv6", "route-ipv6 2001:db8::/32", "dhcp-option DNS6 fd00::1"
    )
    assert settings.block_ipv6
    assert settings.dns == ()
    assert networks(settings) == {"10.8.0.0/24"}


@pytest.mark.parametrize(
    "network",
    [
        "10.137.0.0 255.255.0.0",
        "10.137.3.4 255.255.255.255",
        "10.138.1.0 255.255.255.0",
        "10.139.1.1 255.255.255.255",
        "127.0.0.0 255.0.0.0",
        "127.1.2.3",
        "169.254.0.0 255.255.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.10",
        "192.0.2.0 255.255.255.0",
        "192.0.0.0 255.255.0.0",
        "198.51.100.7",
        "1.2.3.4 255.255.255.255 net_gateway",
        "remote_host 255.255.255.255 net_gateway",
        "vpn.example",
        "10.0.0.0 255.0.0.0 vpn_gateway nonsense",
        "10.0.0.0 255.0.255.0",
        "net_gateway",
    ],
)
def test_routes_that_are_refused(network):
    settings = pulled(f"route {network}", gateway=ip_address("198.51.100.7"))
    assert networks(settings) == {"10.8.0.0/24", "fd00::/64"}
    assert len(settings.refused) == 1


@pytest.mark.parametrize(
    "network",
    [
        "fd09:24ef:4179::/48",
        "fd09:24ef:4179::a89:1/128",
        "fe80::/64",
        "::1/128",
        "ff02::/16",
        "2001:db8::5/128",
        "2001:db8::/48",
    ],
)
def test_ipv6_routes_that_are_refused(network):
    settings = pulled(
        f"route-ipv6 {network}", endpoint=ip_address("2001:db8::5")
    )
    assert networks(settings) == {"10.8.0.0/24", "fd00::/64"}
    assert len(settings.refused) == 1


@pytest.mark.parametrize(
    "network", ["10.0.0.0/8", "192.0.0.0/9", "0.0.0.0/1", "10.136.0.0/14"]
)
def test_routes_that_cover_more_are_applied(network):
    one = ip_network(network)
    option = f"route {one.network_address} {one.netmask}"
    assert network in networks(pulled(option))


def test_a_name_for_a_server_hides_no_address():
    settings = pulled("route 192.0.2.10", remote=Remote("vpn.example"))
    assert "192.0.2.10/32" in networks(settings)
    settings = pulled(
        "route 192.0.2.10",
        remote=Remote("vpn.example"),
        endpoint=ip_address("192.0.2.10"),
    )
    assert "192.0.2.10/32" not in networks(settings)


def test_a_family_without_an_address_has_no_routes():
    settings = pulled("route-ipv6 2001:db8::/32", base=(ADDRESS,))
    assert "no IPv6" in refused(settings)["route 2001:db8::/32"]


@pytest.mark.parametrize(
    "option",
    [
        "ifconfig 10.137.0.5 255.255.255.0",
        "ifconfig 10.139.1.1 10.139.1.2",
        "ifconfig-ipv6 fd09:24ef:4179::a89:5/64 fe80::1",
    ],
)
def test_an_address_of_qubes_own_ends_the_session(option):
    with pytest.raises(SessionError) as caught:
        pulled(option, base=())
    assert (caught.value.reason, caught.value.code) == ("address", "QV-152")


@pytest.mark.parametrize(
    "option",
    [
        "ifconfig 127.0.0.1 255.0.0.0",
        "ifconfig 224.0.0.1 255.255.255.0",
        "ifconfig x y",
        "ifconfig 10.8.0.2",
        "ifconfig-ipv6 ::1/128 ::2",
        "ifconfig-ipv6 x y",
    ],
)
def test_an_address_that_is_none_is_refused(option):
    settings = pulled(option, base=())
    assert settings.ifconfig4 is None
    assert settings.ifconfig6 is None
    assert len(settings.refused) == 1


def test_resolvers():
    settings = pulled(
        "dhcp-option DNS 10.8.0.1",
        "dhcp-option DNS 10.139.1.1",
        "dhcp-option DNS 127.0.0.1",
        "dhcp-option DOMAIN corp.example",
        "dhcp-option DOMAIN a;b",
        "dns server 1 address [fd00::1]:5353",
        "route 10.9.0.0 255.255.0.0",
        profile=replace(PROFILE, dns=("9.9.9.9",), search=("own.example",)),
    )
    assert [str(one) for one in settings.dns] == ["9.9.9.9", "10.8.0.1"]
    assert settings.search == ("own.example", "corp.example")
    assert len(settings.refused) == 4
    # A resolver outside what is carried still has to be reached.
    assert "9.9.9.9/32" in networks(settings)


def test_a_resolver_of_a_family_that_is_not_carried_is_refused():
    settings = pulled("dhcp-option DNS6 fd00::1", base=(ADDRESS,))
    assert settings.dns == ()
    assert "no IPv6" in refused(settings)["dns fd00::1"]


def test_there_are_no_more_than_eight_resolvers():
    options = [f"dhcp-option DNS 10.8.0.{n}" for n in range(1, 20)]
    assert len(pulled(*options).dns) == tunnel.DNS_MAX


def test_there_are_no_more_than_1008_routes():
    options = [
        f"route 20.{n >> 8}.{n & 255}.0 255.255.255.0" for n in range(3000)
    ]
    own = tuple((ip_network(f"30.0.{n}.0/24"), "", 0) for n in range(100))
    settings = pulled(*options, profile=replace(PROFILE, routes=own))
    assert len(settings.routes) == tunnel.ROUTES_MAX + 2
    assert len(settings.refused) == push.REFUSED_MAX + 1
    assert settings.refused[-1][1].endswith(" more")


@pytest.mark.parametrize(
    ("option", "field", "value"),
    [
        ("tun-mtu 1400", "mtu", 1400),
        ("tun-mtu 1600", "mtu", 1600),
        ("tun-mtu 9000", "mtu", 1500),
        ("tun-mtu 1", "mtu", 1500),
        ("cipher aes-128-gcm", "cipher", "AES-128-GCM"),
        ("peer-id 7", "peer_id", 7),
        ("peer-id 16777216", "peer_id", None),
        ("ping 5", "ping", 5),
        ("ping-restart 50", "ping_restart", 50),
        ("ping-exit 50", "ping_restart", 0),
        ("ping-exit 50", "ping_exit", 50),
        ("ping-restart 70", "ping_exit", 0),
        ("inactive 60 10", "inactive_bytes", 10),
        ("session-timeout 60", "session_timeout", 60),
        ("explicit-exit-notify 2", "explicit_exit_notify", 2),
        ("explicit-exit-notify", "explicit_exit_notify", 1),
        ("key-derivation tls-ekm", "tls_ekm", True),
        ("protocol-flags cc-exit dyn-tls-crypt", "cc_exit", True),
        ("protocol-flags cc-exit dyn-tls-crypt", "dyn_tls_crypt", True),
        ("protocol-flags aead-epoch", "aead_epoch", True),
        ("auth-token abc", "auth_token", "abc"),
        ("auth-token " + "x" * 1000, "auth_token", "x" * 1000),
        ("auth-token-user abc", "auth_token_user", "abc"),
        ("compress stub-v2", "compression", "stub-v2"),
        ("comp-lzo no", "compression", "lzo-rx"),
        ("comp-lzo yes", "compression", "lzo-rx"),
        ("compress lz4", "compression", "lz4-rx"),
        ("compress nonsense", "compression", ""),
        ("topology nonsense", "topology", "net30"),
    ],
)
def test_options_set_their_field(option, field, value):
    assert getattr(pulled(option), field) == value


def test_the_last_word_on_silence_is_in_force():
    exits = replace(PROFILE, ping_exit=30, ping_restart=0)
    found = pulled("ping-restart 70", profile=exits)
    assert (found.ping_restart, found.ping_exit) == (70, 0)
    found = pulled("ping-exit 50", "ping-restart 70")
    assert (found.ping_restart, found.ping_exit) == (70, 0)
    found = pulled("ping-restart 70", "ping-exit 50")
    assert (found.ping_restart, found.ping_exit) == (0, 50)


def test_over_tcp_nothing_says_goodbye():
    tcp = replace(REMOTE, proto="tcp")
    assert (
        pulled("explicit-exit-notify 2", remote=tcp).explicit_exit_notify == 0
    )


def test_values_of_the_profile_and_the_remote_hold():
    profile = replace(PROFILE, ping=3, tun_mtu=1300, mssfix=1100, fragment=9)
    settings = pulled(profile=profile)
    assert (settings.ping, settings.mtu, settings.mssfix) == (3, 1300, 1100)
    assert settings.fragment == 9
    remote = replace(REMOTE, tun_mtu=1200, mssfix=0, fragment=8)
    settings = pulled(profile=profile, remote=remote)
    assert (settings.mtu, settings.mssfix, settings.fragment) == (1200, 0, 8)


def test_only_pushable_rows_are_applied():
    for name, row in DIRECTIVES.items():
        settings = pulled(f"{name} 1 2 3 4 5 6 7 8 9", base=())
        if Scope.PUSHED not in row.scope and not row.alias:
            assert (name, "not for a server to set") in settings.refused
        # Whatever it is, a server cannot make it a setting by force.
        assert settings.ifconfig4 is None


@pytest.mark.parametrize(
    "option",
    ["", " ", "\0", 'route "', "x" * 5000, "\x1b[2J", "route \n 1", "é", "-x"],
)
def test_nonsense_is_reported_and_ends_nothing(option):
    settings = pulled(option)
    assert len(settings.refused) == (1 if option.strip(" ") else 0)
    for name, _ in settings.refused:
        assert name.isprintable()
        assert name.isascii()


def test_too_many_options_are_counted():
    settings = pulled(*["ping 1"] * (push.OPTIONS_MAX + 5))
    assert settings.refused == (("...", "8 options too many"),)


def test_route_nopull():
    profile = replace(PROFILE, route_nopull=True)
    settings = pulled(
        "redirect-gateway def1",
        "route 10.0.0.0 255.0.0.0",
        "dhcp-option DNS 10.8.0.1",
        "ping 9",
        profile=profile,
    )
    assert settings.dns == ()
    assert settings.ping == 9
    assert {reason for _, reason in settings.refused} == {
        "the profile says route-nopull"
    }


def test_pull_filters_match_prefixes_in_order():
    filters = (
        ("accept", "route 10."),
        ("ignore", "route"),
        ("reject", "dhcp-option"),
    )
    profile = replace(PROFILE, pull_filters=filters)
    settings = pulled(
        "route 10.1.0.0 255.255.0.0",
        " route 11.0.0.0 255.0.0.0",
        profile=profile,
    )
    assert "10.1.0.0/16" in networks(settings)
    assert "11.0.0.0/8" not in networks(settings)
    with pytest.raises(SessionError) as caught:
        pulled("dhcp-option DNS 10.8.0.1", profile=profile)
    assert (caught.value.reason, caught.value.code) == ("pull-filter", "QV-150")


def test_a_token_is_never_shown():
    profile = replace(PROFILE, pull_filters=(("ignore", "auth-token"),))
    assert "hidden" not in repr(pulled("auth-token hidden", profile=profile))
    assert "hidden" not in repr(pulled("auth-token hidden"))
    assert "hidden" not in repr(pulled("auth-token hidden\x01"))
    assert "hidden" not in repr(pulled('auth-token hidden"\\x'))
