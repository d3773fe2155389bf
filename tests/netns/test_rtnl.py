"""What we tell the kernel's network, and what it tells us: beside `ip`."""

import errno
import json
import os
import socket
from contextlib import closing
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    ip_address,
    ip_network,
)
from pathlib import Path

import pytest
from pyroute2.netlink import NETLINK_ROUTE
from pyroute2.netlink.rtnl import RTM_GETROUTE
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from lab.namespace import Namespace
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.system import uplink6
from qubes_vpn.system.generation import Generations, Notifications
from qubes_vpn.system.netlink import NetlinkError, Requests, message
from qubes_vpn.system.rtnl import Events, RouteSeen, Rtnl, RuleSeen

pytestmark = pytest.mark.netns
TABLE = 51


@pytest.fixture
def namespace():
    made = Namespace(f"rtnl{os.getpid()}")
    made.ip("""
        link set lo up
        link add d0 type veth peer name d1
        link set d0 addrgenmode none
        link set d0 up
        link set d1 up
    """)
    yield made
    made.close()


@pytest.fixture
def rtnl(namespace):
    with namespace.enter(), closing(Rtnl()) as made:
        yield made


def asked(namespace, *words):
    """What `ip` says: the oracle."""
    return json.loads(namespace.run(["ip", "-j", *words]).stdout or "[]")


def test_a_device_is_as_ip_shows_it(namespace, rtnl):
    link = rtnl.link("d0")
    rtnl.set_link(link, up=False, mtu=1400, group=7)
    (shown,) = asked(namespace, "link", "show", "d0")
    assert (shown["mtu"], shown["group"]) == (1400, "7")
    assert "UP" not in shown["flags"]
    seen = rtnl.link("d0")
    assert (seen.index, seen.name) == (shown["ifindex"], "d0")
    assert (seen.up, seen.mtu, seen.group) == (False, 1400, 7)
    assert rtnl.link("nothing") is None


def test_a_device_is_made_and_deleted(namespace, rtnl):
    rtnl.add_link("b0", "bridge")
    (shown,) = asked(namespace, "-d", "link", "show", "b0")
    assert shown["linkinfo"]["info_kind"] == "bridge"
    with pytest.raises(NetlinkError) as error:
        rtnl.add_link("b0", "bridge")
    assert error.value.number == errno.EEXIST
    rtnl.delete_link("b0")
    rtnl.delete_link("b0")
    assert rtnl.link("b0") is None


def test_addresses_are_as_ip_shows_them(namespace, rtnl):
    index = rtnl.link("d0").index
    wanted = {IPv4Interface("10.9.9.9/24"), IPv6Interface("2001:db8::9/64")}
    for address in (*wanted, IPv4Interface("10.9.9.9/24")):
        rtnl.add_address(index, address)
    assert rtnl.addresses(index) == wanted
    (shown,) = asked(namespace, "address", "show", "d0")
    pairs = {(e["local"], e["prefixlen"]) for e in shown["addr_info"]}
    assert pairs == {("10.9.9.9", 24), ("2001:db8::9", 64)}
    assert all(
        e.get("nodad", e["family"] == "inet") for e in shown["addr_info"]
    )
    for address in (*wanted, *wanted):
        rtnl.delete_address(index, address)
    assert rtnl.addresses(index) == set()


@pytest.mark.parametrize(
    ("network", "via", "far"),
    [
        ("10.7.0.0/16", "10.9.9.1", "10.7.1.1"),
        ("2001:db8:7::/48", "2001:db8::1", "2001:db8:7::1"),
    ],
)
def test_routes_are_as_ip_shows_them(namespace, rtnl, network, via, far):
    network = ip_network(network)
    via, far = ip_address(via), ip_address(far)
    index = rtnl.link("d0").index
    everything = network.supernet(new_prefix=0)
    rtnl.replace_route(TABLE, network, index, 5)
    rtnl.replace_route(TABLE, everything, 0, 9)
    assert {route for route, _ in rtnl.routes(TABLE)} == {
        RouteSeen(network, index, 5),
        RouteSeen(everything, 0, 9),
    }
    shown = asked(
        namespace, f"-{network.version}", "route", "show", "table", str(TABLE)
    )
    found = {(e["dst"], e.get("type"), e["metric"]) for e in shown}
    assert found == {(str(network), None, 5), ("default", "unreachable", 9)}
    rtnl.replace_route(254, network, index, 0, via)
    assert rtnl.lookup(far) == (index, via)
    (shown,) = asked(namespace, "route", "get", str(far))
    assert (shown["gateway"], shown["dev"]) == (str(via), "d0")
    for _, body in rtnl.routes(TABLE):
        rtnl.delete_route(body)
        rtnl.delete_route(body)
    assert rtnl.routes(TABLE) == []
    assert [r for r, _ in rtnl.routes(254) if r.destination == network] == [
        RouteSeen(
            network, index, 0 if network.version == 4 else 1024, other=True
        )
    ]


@pytest.mark.parametrize("version", [4, 6])
def test_rules_are_as_ip_shows_them(namespace, rtnl, version):
    rules = [
        RuleSeen(version, 70, "d0", TABLE),
        RuleSeen(version, 71),
        RuleSeen(version, 72, table=254, suppress_group=2),
        RuleSeen(version, 73, table=254, proto=1),
    ]
    for rule in (*rules, *rules):
        rtnl.add_rule(rule)
    assert [rule for rule in rtnl.rules() if rule in rules] == rules
    shown = asked(namespace, f"-{version}", "rule")
    shown = {e["priority"]: e for e in shown if 70 <= e["priority"] <= 73}
    assert (shown[70]["iif"], shown[70]["table"]) == ("d0", str(TABLE))
    assert shown[71]["action"] == "unreachable"
    assert str(shown[72]["suppress_ifgroup"]) == "2"
    assert shown[73]["ipproto"] == "icmp"
    for _, body in rtnl.outranking(74):
        rtnl.delete_rule_as_seen(body)
    assert not [rule for rule in rtnl.rules() if rule in rules]


@pytest.mark.parametrize(
    "words",
    [
        "from 192.0.2.1 table 51",
        "fwmark 3 table 51",
        "uidrange 5-6 sport 7-8 table 51",
        "not from 192.0.2.1 table 51",
        "table 51 suppress_prefixlength 0",
        "l3mdev",
        "goto 32766",
        "iif lo blackhole",
    ],
)
def test_a_rule_of_others_is_told_and_goes(namespace, rtnl, words):
    namespace.ip(f"rule add priority 60 {words}")
    ((rule, body),) = rtnl.outranking(70)
    assert (rule.priority, rule.other) == (60, True)
    rtnl.delete_rule_as_seen(body)
    rtnl.delete_rule_as_seen(body)
    shown = {each["priority"] for each in asked(namespace, "rule")}
    assert shown == {0, 32766, 32767}


def test_the_kernels_words_are_in_the_error(rtnl):
    index = rtnl.link("d0").index
    far = IPv4Address("192.0.2.1")
    rtnl.add_address(index, IPv4Interface("10.9.9.9/24"))
    with pytest.raises(NetlinkError, match="invalid gateway") as error:
        rtnl.replace_route(
            254, IPv4Network("10.0.0.0/8"), index, 0, IPv4Address("127.0.0.1")
        )
    assert error.value.number == errno.EINVAL
    with pytest.raises(NetlinkError) as error:
        rtnl.lookup(far)
    assert error.value.number == errno.ENETUNREACH


def test_the_error_at_the_end_of_a_dump_is_one(namespace):
    with namespace.enter():
        requests = Requests(NETLINK_ROUTE, {})
    with closing(requests):
        table = [("RTA_TABLE", 999)]
        with pytest.raises(NetlinkError) as error:
            requests.dump(
                "routes",
                RTM_GETROUTE,
                message(rtmsg, table, family=socket.AF_INET),
            )
        assert error.value.number == errno.ENOENT


def test_changes_are_heard_and_lost_ones_noticed(namespace):
    with namespace.enter():
        events = Events()
    with closing(events):
        assert events.receive() == 0
        namespace.ip("route add 10.1.0.0/16 dev d0")
        assert events.receive() >= 1
        assert events.receive() == 0
        lines = "route add 10.2.0.0/16 dev d0\nroute del 10.2.0.0/16\n"
        namespace.ip(lines * 2000)
        with pytest.raises(OsRefusedError, match="buffer"):
            events.receive()
        events.receive()
        namespace.ip("route add 10.3.0.0/16 dev d0")
        assert events.receive() >= 1


# include/linux/proc_ns.h: PROC_PID_INIT_INO
FIRST_PID_NAMESPACE = 0xEFFFFFFC


def test_every_transaction_is_heard_with_its_maker(namespace):
    with namespace.enter():
        notifications, generations = Notifications(), Generations()
    with closing(notifications), closing(generations):
        before = generations.current()
        maker = namespace.popen(["nft", "add table ip x"])
        assert maker.wait(30) == 0
        namespace.nft("add table ip y\nadd table ip z\n")
        assert generations.current() == before + 2
        first, second = notifications.receive()
        assert (first.number, second.number) == (before + 1, before + 2)
        assert first.name == "nft"
        # the kernel's own number of it: another in a container
        if Path("/proc/self/ns/pid").stat().st_ino == FIRST_PID_NAMESPACE:
            assert first.pid == maker.pid
        assert notifications.receive() == []


def test_ipv6_of_the_uplink_is_put_back(namespace):
    address, gateway = IPv6Address("2001:db8::5"), IPv6Address("2001:db8::1")
    with namespace.enter():
        uplink6.configure("d0", address, gateway)
        uplink6.configure("d0", address, gateway)
        with pytest.raises(OsRefusedError):
            uplink6.configure("gone", address, gateway)
    (shown,) = asked(
        namespace, "-6", "address", "show", "d0", "scope", "global"
    )
    assert [each["local"] for each in shown["addr_info"]] == [str(address)]
    shown = asked(namespace, "-6", "route", "show", "default")
    assert [(e["gateway"], e["dev"]) for e in shown] == [(str(gateway), "d0")]
    assert asked(namespace, "-6", "route", "show", str(gateway))
