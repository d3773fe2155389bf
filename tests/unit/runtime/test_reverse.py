"""What is answered to a reverse lookup of a private address."""

import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.runtime.reverse import answer, main


@pytest.mark.parametrize("kind", ["PTR", "SOA", "A"])
def test_there_is_no_such_name(kind):
    query = dns.message.make_query(
        "11.0.137.10.in-addr.arpa", kind, use_edns=True, want_dnssec=True
    )
    reply = dns.message.from_wire(answer(query.to_wire()) or b"")
    assert query.is_response(reply)
    assert reply.rcode() == dns.rcode.NXDOMAIN
    assert not reply.answer


@pytest.mark.parametrize(
    "name", ["1.0.0.198.in-addr.arpa", "example.org", "10.in-addr.arpa", "."]
)
def test_nothing_else_is_answered(name):
    query = dns.message.make_query(name, "PTR")
    reply = dns.message.from_wire(answer(query.to_wire()) or b"")
    assert reply.rcode() == dns.rcode.REFUSED


@given(st.binary(max_size=1500))
def test_any_bytes_get_one_small_answer_or_none(data):
    reply = answer(data)
    assert reply is None or len(reply) <= len(data) + 64


def test_it_is_not_started_by_hand(monkeypatch, capsys):
    monkeypatch.delenv("LISTEN_FDS", raising=False)
    assert main() == 64
    assert "qubes-vpn-reverse.socket" in capsys.readouterr().err
