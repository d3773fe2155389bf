import contextlib
import select
from ipaddress import IPv6Address

import pytest
import qubesdb as standin
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.errors import OsRefusedError, UsageError
from qubes_vpn.qubes.qubesdb import (
    WATCHED,
    Change,
    Database,
    DnsChoice,
    open_database,
)


@pytest.fixture
def database(qdb):
    return Database(qdb)


def test_the_stand_in_has_the_limits(qdb):
    with pytest.raises(standin.Error):
        qdb.write("/" + "x" * 64, b"")
    with pytest.raises(standin.Error):
        qdb.write("/x", b"x" * 3073)


def test_every_watched_path_fits(qdb):
    for path in WATCHED:
        qdb.write(path, b"x" * 3072)


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (b"home", ("home",)),
        (b"home, work.2 ,x", ("home", "work.2", "x")),
        (b"", ()),
        (b"../etc,ok", ("ok",)),
        (b"a b,c/d,.hidden", ()),
        (b"x" * 49, ()),
    ],
)
def test_the_wanted_profiles(qdb, database, value, names):
    qdb.write("/vm-config/vpn-profile", value)
    assert database.profiles() == names


def test_nothing_is_wanted_where_nothing_is_said(database):
    assert database.profiles() == ()
    assert database.dns() == DnsChoice()
    assert database.resolver() == ""
    assert database.uplink6() is None
    assert database.clients() == 0
    assert not database.service_on()


@pytest.mark.parametrize(
    ("value", "choice"),
    [
        (b"pushed", DnsChoice()),
        (b"9.9.9.9", DnsChoice("9.9.9.9")),
        (b"2620:fe::fe", DnsChoice("2620:fe::fe")),
        (b"passthrough", DnsChoice(passthrough=True)),
        (b"", DnsChoice()),
        (b"block-dot", DnsChoice(block_dot=True)),
        (b"9.9.9.9 block-dot", DnsChoice("9.9.9.9", block_dot=True)),
        (
            b" block-dot  passthrough",
            DnsChoice(passthrough=True, block_dot=True),
        ),
    ],
)
def test_the_choice_of_resolver(qdb, database, value, choice):
    qdb.write("/vm-config/vpn-dns", value)
    assert database.dns() == choice


@pytest.mark.parametrize(
    "value",
    [
        b"dns.example.com",
        b'9.9.9.9"\nup /bin/sh',
        b"9.9.9.9 1.1.1.1",
        b"pushed passthrough",
        b"9.9.9.9\0",
    ],
)
def test_another_resolver_than_the_one_that_was_meant_is_none(
    qdb, database, value
):
    qdb.write("/vm-config/vpn-dns", value)
    with pytest.raises(UsageError, match="takes pushed, passthrough"):
        database.dns()


def test_ipv6_needs_address_and_gateway(qdb, database):
    qdb.write("/qubes-ip6", b"fd09:24ef:4179::a89:7")
    assert database.uplink6() is None
    qdb.write("/qubes-gateway6", b"fe80::fcff:ffff:feff:ffff")
    assert database.uplink6() == (
        IPv6Address("fd09:24ef:4179::a89:7"),
        IPv6Address("fe80::fcff:ffff:feff:ffff"),
    )


def test_service_type_and_clients(qdb, database):
    qdb.write("/qubes-service/qubes-vpn", b"1")
    qdb.write("/connected-ips", b"10.137.0.5 10.137.0.6")
    qdb.write("/qubes-vm-type", b"NetVM")
    assert database.service_on()
    assert database.clients() == 2
    assert database.is_net_vm()
    qdb.write("/qubes-service/qubes-vpn", b"0")
    assert not database.service_on()


@pytest.mark.parametrize("path", WATCHED)
def test_a_change_is_reported_on_the_descriptor(qdb, database, path):
    descriptor = database.watch()
    assert select.select([descriptor], [], [], 0)[0] == []
    qdb.write(path, b"1")
    assert select.select([descriptor], [], [], 5)[0] == [descriptor]
    assert database.changed() == WATCHED[path]
    qdb.rm(path)
    assert database.changed() == WATCHED[path]


def test_the_changes_are_all_used():
    assert set(WATCHED.values()) == set(Change)


@given(st.binary(max_size=3072))
def test_any_value_is_read(value):
    class Any:
        def read(self, path):
            return value

    database = Database(Any())
    database.profiles(), database.resolver()
    with contextlib.suppress(UsageError):
        database.dns()
    database.uplink6(), database.clients(), database.service_on()


def test_no_binding_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "qubesdb", None)
    with pytest.raises(OsRefusedError, match="binding"):
        open_database()


def test_no_daemon_is_said(monkeypatch):
    def refuse(*_):
        raise standin.Error(2, "No such file")

    monkeypatch.setattr(standin, "QubesDB", refuse)
    with pytest.raises(OsRefusedError, match="does not answer"):
        open_database()
