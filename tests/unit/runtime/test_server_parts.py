"""Routing of clients, their status, who may come in, and the NAT table."""

import os
import select
import socket
import subprocess
import time
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.crypto.passwords import SALT_SIZE, hash_password
from qubes_vpn.dataplane.link import STREAM_BUFFER
from qubes_vpn.engine.address_pool import Leases
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.hello import Source
from qubes_vpn.engine.server_effects import Authenticate
from qubes_vpn.engine.traffic import Traffic
from qubes_vpn.errors import SessionError, UnavailableError
from qubes_vpn.runtime.server_auth import Authenticator, check_backends
from qubes_vpn.runtime.server_clients import Client, Router, Sources
from qubes_vpn.runtime.server_files import LeaseMemory, replace_file
from qubes_vpn.runtime.server_nat import render
from qubes_vpn.runtime.server_status import (
    PAGE,
    ClientStatus,
    describe,
    metrics,
    status_file,
)
from qubes_vpn.runtime.server_stream import PACKET_MAX, QUEUE_MAX, Stream

SOURCE = Source(0, ip_address("192.0.2.7"), 5000)
NETWORKS = st.one_of(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(8, 32)).map(
        lambda t: IPv4Network(t, strict=False)
    ),
    st.tuples(st.integers(0, 2**128 - 1), st.integers(16, 128)).map(
        lambda t: IPv6Network(t, strict=False)
    ),
)
ADDRESSES = st.one_of(
    st.integers(0, 2**32 - 1).map(IPv4Address),
    st.integers(0, 2**128 - 1).map(IPv6Address),
)


def client(number, addresses=(), networks=()):
    made = Client(number, DataChannel(Traffic()), SOURCE)
    made.sources = Sources([a.packed for a in addresses], networks)
    return made


@given(
    st.lists(st.tuples(st.lists(ADDRESSES), st.lists(NETWORKS)), max_size=6),
    st.data(),
)
def test_the_router_agrees_with_a_scan_of_everything(given_clients, data):
    clients = [client(n, *of) for n, of in enumerate(given_clients)]
    router = Router()
    for one in clients:
        router.add(one)
    known = [a for addresses, _ in given_clients for a in addresses]
    known += [n[0] for _, networks in given_clients for n in networks]
    known += [n[-1] for _, networks in given_clients for n in networks]
    strategy = st.one_of(ADDRESSES, st.sampled_from(known or [IPv4Address(1)]))
    for address in data.draw(st.lists(strategy, max_size=8)):
        found = router.find(address.packed)
        exact = [c for c, of in zip(clients, given_clients, strict=True) if address in of[0]]  # fmt: skip
        if exact:
            assert found is exact[-1]
            continue
        lengths = {
            c.number: max(
                (n.prefixlen for n in of[1] if n.version == address.version and address in n),
                default=-1,
            )
            for c, of in zip(clients, given_clients, strict=True)
        }  # fmt: skip
        best = max(lengths.values(), default=-1)
        if best < 0:
            assert found is None
        else:
            assert lengths[found.number] == best


@given(st.lists(ADDRESSES), st.lists(NETWORKS), ADDRESSES)
def test_sources_are_addresses_and_networks_and_nothing_else(
    addresses, networks, address
):
    inside = address in addresses or any(
        n.version == address.version and address in n for n in networks
    )
    sources = Sources([a.packed for a in addresses], networks)
    assert (address.packed in sources) is inside


def test_a_client_that_left_has_no_routes():
    one = client(1, [IPv4Address("10.8.0.2")], [IPv4Network("10.9.0.0/16")])
    router = Router()
    router.add(one)
    router.remove(one)
    assert router.find(IPv4Address("10.8.0.2").packed) is None
    assert router.find(IPv4Address("10.9.0.2").packed) is None
    assert router.find(b"") is None


# --- who may come in


def question(name="alice", user="", password="", **more):
    return Authenticate(1, name, user, password, **more)


def decide(asked, **profile):
    authenticator = Authenticator(ServerProfile(**profile))
    try:
        authenticator.ask(7, asked)
        end = time.monotonic() + 60
        while not (answers := authenticator.answers()):
            assert time.monotonic() < end
            time.sleep(0.01)
        (answer,) = answers
        assert answer[:2] == (7, 1)
        return answer[2]
    finally:
        authenticator.close()


@pytest.fixture(scope="module")
def passwords(tmp_path_factory):
    path = tmp_path_factory.mktemp("server") / "passwords"
    stored = hash_password("secret", os.urandom(SALT_SIZE))
    path.write_text(f"# users\nalice:{stored}\nbroken:plain\n")
    return str(path)


@pytest.mark.parametrize(
    ("user", "password", "allowed"),
    [
        ("alice", "secret", True),
        ("alice", "Secret", False),
        ("alice", "", False),
        ("", "secret", False),
        ("bob", "secret", False),
        ("broken", "plain", False),
        ("# users", "", False),
    ],
)
def test_a_password_of_the_file(passwords, user, password, allowed):
    asked = question(user=user, password=password)
    assert decide(asked, password_file=passwords).allowed is allowed


def test_what_is_trusted_is_not_asked_again(passwords):
    asked = question(user="alice", password="token", trusted=True)
    assert decide(asked, password_file=passwords).allowed


def test_without_a_user_only_where_it_is_optional(passwords):
    optional = {"password_file": passwords, "auth_user_pass_optional": True}
    assert decide(question(), **optional).allowed
    wrong = question(user="alice", password="x")
    assert not decide(wrong, **optional).allowed


def test_a_password_file_that_is_gone_refuses(tmp_path):
    asked = question(user="alice", password="secret")
    path = str(tmp_path / "gone")
    assert not decide(asked, password_file=path).allowed
    with pytest.raises(UnavailableError, match="gone"):
        check_backends(ServerProfile(password_file=path))


@pytest.mark.parametrize("name", ["alice", "DEFAULT"])
def test_a_file_for_the_client_or_for_all(tmp_path, name):
    (tmp_path / name).write_text("ifconfig-push 10.8.0.9 255.255.255.0\n")
    decision = decide(question(trusted=True), client_config_dir=str(tmp_path))
    assert decision.allowed
    assert decision.config.ifconfig4[0] == IPv4Address("10.8.0.9")


@pytest.mark.parametrize(
    "name", ["../alice", ".alice", "a/b", "", "a b", "x" * 65, "a\0b"]
)
def test_a_name_is_never_a_path(tmp_path, name):
    (tmp_path / "alice").write_text("")
    ccd = tmp_path / "ccd"
    ccd.mkdir()
    asked = question(name, trusted=True)
    assert not decide(asked, client_config_dir=str(ccd)).allowed


def test_a_file_that_is_wrong_disabled_or_missing_refuses(tmp_path):
    directory = str(tmp_path)
    alice = tmp_path / "alice"
    for text in ("disable\n", "nonsense here\n", "x" * 100_000):
        alice.write_text(text)
        assert not decide(
            question(trusted=True), client_config_dir=directory
        ).allowed
    alice.unlink()
    exclusive = {"client_config_dir": directory, "ccd_exclusive": True}
    (tmp_path / "DEFAULT").write_text("")
    assert not decide(question(trusted=True), **exclusive).allowed
    assert decide(question(trusted=True), client_config_dir=directory).allowed


# --- what it tells


def row(number, name="alice", **fields):
    values = {
        "username": "", "remote": "192.0.2.7:5000", "transport": "udp",
        "address4": f"10.8.0.{number + 2}", "address6": "", "networks": (),
        "rx_bytes": 10, "tx_bytes": 20, "since": 1000, "last": 2000,
        "cipher": "AES-256-GCM", "tls": "TLSv1.3", "version": "2.6",
        "floated": 0,
    }  # fmt: skip
    return ClientStatus(number, name, **{**values, **fields})


def test_pages_have_every_client_once():
    rows = [row(n) for n in reversed(range(2 * PAGE + 3))]
    seen, after = [], -1
    while True:
        page = describe(rows, 0, {}, "tun0", after)
        seen += [one["number"] for one in page["clients"]]
        if not page["more"]:
            break
        after = seen[-1]
    assert seen == list(range(2 * PAGE + 3))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_no_name_makes_a_row_of_its_own(version):
    plain = status_file(version, [row(0)], 0).count("\n")
    evil = row(0, "a,b\tc\nCLIENT_LIST,x")
    text = status_file(version, [evil], 0)
    assert text.count("\n") == plain
    assert "\nCLIENT_LIST,x" not in text


def test_metrics_quote_names():
    text = metrics([row(0, 'a"b\\c\n')], 3, {"replay": 2})
    assert 'client="a\\"b\\\\c\\n"' in text
    assert "qubes_vpn_half_open 3\n" in text
    assert 'qubes_vpn_drops_total{reason="replay"} 2\n' in text


def test_leases_are_read_back_and_nonsense_is_not(tmp_path):
    profile = ServerProfile(
        network4=IPv4Network("10.8.0.0/24"), network6=IPv6Network("fd00::/64")
    )
    path = tmp_path / "pool"
    path.write_text("alice,10.8.0.50,fd00::1050\nbob,nonsense\ncarol\n\n,,,\n")
    leases = Leases(profile)
    memory = LeaseMemory(str(path), leases)
    assert leases.pool4.take(1, "alice") == IPv4Address("10.8.0.50")
    assert leases.pool6.take(1, "alice") == IPv6Address("fd00::1050")
    leases.pool4.take(2, "bob")
    memory.save()
    assert "bob,10.8.0.2," in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    replace_file(str(tmp_path / "missing" / "file"), "x")
    assert "No such file" in caplog.text


# --- NAT


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("mssfix", [-1, 0, 1400])
def test_nft_takes_the_table(together, mssfix):
    profile = ServerProfile(
        network4=IPv4Network("10.8.0.0/24"),
        network6=IPv6Network("fd00::/64"),
        client_to_client=together,
        mssfix=mssfix,
    )
    text = render(profile, "tun0")
    subprocess.run(
        ["unshare", "-rn", "nft", "-c", "-f", "-"],
        input=text, text=True, check=True, capture_output=True,
    )  # fmt: skip
    assert ("maxseg" in text) is bool(mssfix)
    assert ('oifname "tun0" accept' in text) is together


@pytest.mark.parametrize(
    ("of", "mss"), [("", 1234), ("mtu", 1174), ("fixed", 1260)]
)
def test_nft_clamps_as_mssfix_says(of, mss):
    profile = ServerProfile(
        network4=IPv4Network("10.8.0.0/24"), mssfix=1300, mssfix_of=of
    )
    assert f"maxseg size set {mss}\n" in render(profile, "tun0")


# --- a stream


def test_a_stream_keeps_order_and_says_when_it_is_full():
    listener = socket.create_server(("127.0.0.1", 0))
    theirs = socket.create_connection(listener.getsockname())
    ours, _ = listener.accept()
    listener.close()
    ours.setblocking(False)
    wanted = []
    buffer = memoryview(bytearray(STREAM_BUFFER))
    stream = Stream(ours, buffer, wanted.append)
    sent = []
    number = 0
    while stream.has_room():
        packet = number.to_bytes(4) + bytes(1000)
        assert stream.send(packet)
        sent.append(packet)
        number += 1
    assert wanted == [True]
    received = b""
    theirs.settimeout(10)
    total = sum(len(packet) + 2 for packet in sent)
    while len(received) < total:
        received += theirs.recv(65536)
        stream.flush()
    assert received == b"".join(len(p).to_bytes(2) + p for p in sent)
    assert wanted[-1] is False
    assert stream.has_room()
    theirs.sendall(b"\0\0\0")
    assert select.select([ours], [], [], 10)[0]
    with pytest.raises(SessionError, match="0 bytes"):
        list(stream.packets(64))
    theirs.close()
    with pytest.raises(SessionError, match="closed"):
        list(stream.packets(64))
    assert number * 1006 > QUEUE_MAX
    ours.close()


@pytest.mark.parametrize("size", [PACKET_MAX, PACKET_MAX + 1])
def test_a_stream_waits_for_no_packet_that_is_too_long(size):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        buffer = memoryview(bytearray(STREAM_BUFFER))
        stream = Stream(ours, buffer, lambda _: None)
        theirs.sendall(size.to_bytes(2) + bytes(10))
        assert select.select([ours], [], [], 10)[0]
        if size > PACKET_MAX:
            with pytest.raises(SessionError, match="too long"):
                list(stream.packets(64))
        else:
            assert list(stream.packets(64)) == []


def test_check_backends_takes_what_is_there(tmp_path, passwords):
    check_backends(
        ServerProfile(password_file=passwords, client_config_dir=str(tmp_path))
    )
    with pytest.raises(UnavailableError, match="no such directory"):
        check_backends(ServerProfile(client_config_dir=str(tmp_path / "no")))
