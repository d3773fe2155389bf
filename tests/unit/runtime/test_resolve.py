"""Names to numbered candidates."""

import socket
import threading
from ipaddress import ip_address

import dns.message
import dns.rrset
import pytest

from qubes_vpn.config.profile import ClientProfile, Proxy, Remote, ServerCheck
from qubes_vpn.policy.phase import Transport
from qubes_vpn.runtime.resolve import AddressCache, candidates, query


def profile(*remotes: Remote) -> ClientProfile:
    return ClientProfile(remotes=remotes, server_check=ServerCheck(ca=b"x"))


def lookup(name: str, family: int):
    known = {4: ["192.0.2.1", "192.0.2.2"], 6: ["2001:db8::1"]}
    return [ip_address(text) for text in known[family]]


def test_every_address_of_a_name_is_a_candidate():
    found = candidates(profile(Remote("vpn.example", 443, "tcp")), lookup)
    assert [str(c.endpoint.address) for c in found] == [
        "192.0.2.1",
        "192.0.2.2",
        "2001:db8::1",
    ]
    assert {c.endpoint.transport for c in found} == {Transport.TCP}
    assert {c.endpoint.port for c in found} == {443}


def test_a_family_keeps_the_others_out():
    found = candidates(profile(Remote("vpn.example", family=6)), lookup)
    assert [str(c.endpoint.address) for c in found] == ["2001:db8::1"]


def test_an_address_needs_no_lookup():
    def refuse(name: str, family: int):
        raise AssertionError(name)

    found = candidates(profile(Remote("192.0.2.9")), refuse)
    assert [c.host for c in found] == ["192.0.2.9"]


def test_behind_a_proxy_the_proxy_is_the_endpoint():
    proxy = Proxy("http", "192.0.2.77", 8080)
    remote = Remote("hidden.example", proto="tcp", proxy=proxy)
    found = candidates(profile(remote), lookup)
    endpoint = found[0].endpoint
    assert (str(endpoint.address), endpoint.port) == ("192.0.2.77", 8080)
    assert endpoint.transport is Transport.TCP


def test_a_proxy_for_datagrams_relays():
    proxy = Proxy("socks", "192.0.2.77", 1080)
    for proto, relays in (("udp", True), ("tcp", False)):
        remote = Remote("hidden.example", proto=proto, proxy=proxy)
        (found,) = candidates(profile(remote), lookup)
        assert found.endpoint.transport is Transport.TCP
        assert found.endpoint.relays is relays


@pytest.mark.parametrize("text", ["127.0.0.1", "0.0.0.0", "224.0.0.1", "::1"])
def test_no_server_is_here_or_everywhere(text):
    assert candidates(profile(Remote(text)), lookup) == ()


@pytest.fixture
def resolver():
    """A DNS server on loopback: answers the second try, and lies first."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("127.0.0.1", 0))

    def serve() -> None:
        data, peer = sock.recvfrom(4096)
        question = dns.message.from_wire(data)
        other = dns.message.make_query("other.example", "A")
        lie = dns.message.make_response(other)
        lie.answer.append(
            dns.rrset.from_text("other.example.", 1, "IN", "A", "203.0.113.6")
        )
        sock.sendto(lie.to_wire(), peer)
        sock.recvfrom(4096)
        answer = dns.message.make_response(question)
        name = question.question[0].name
        answer.answer.append(
            dns.rrset.from_text(name, 1, "IN", "A", "192.0.2.5", "192.0.2.6")
        )
        sock.sendto(answer.to_wire(), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield sock.getsockname()
    thread.join()
    sock.close()


def test_an_answer_to_another_question_is_no_answer(resolver):
    def open_socket(address):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(resolver)
        return sock

    found = query("vpn.example", 4, ip_address(resolver[0]), open_socket)
    assert sorted(map(str, found)) == ["192.0.2.5", "192.0.2.6"]


def test_the_cache_survives_and_keeps_the_families_apart(tmp_path):
    path = str(tmp_path / "state.json")
    cache = AddressCache(path)
    cache.store("vpn.example", 4, lookup("", 4))
    cache.store("vpn.example", 6, lookup("", 6))
    again = AddressCache(path)
    again.load()
    assert again.get("vpn.example", 4) == lookup("", 4)
    assert again.get("vpn.example", 6) == lookup("", 6)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"addresses":{"a":["x"]}}'])
def test_a_broken_cache_is_an_empty_one(tmp_path, text):
    path = tmp_path / "state.json"
    path.write_text(text)
    cache = AddressCache(str(path))
    cache.load()
    assert cache.get("a", 4) == []


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path):
    cache = AddressCache(str(tmp_path / "missing" / "state.json"))
    cache.store("a", 4, lookup("", 4))
    assert cache.get("a", 4) == lookup("", 4)
