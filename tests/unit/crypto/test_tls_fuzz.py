"""Any bytes from a peer end in a SessionError, or do no harm."""

import contextlib
import warnings

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from qubes_vpn.crypto.tls import _MALFORMED, TlsContext, TlsSettings
from qubes_vpn.crypto.verify import PeerCheck, check_leaf
from qubes_vpn.errors import SessionError


@pytest.fixture(scope="module")
def contexts(pki, server, client):
    return [
        TlsContext(
            TlsSettings(
                is_server=is_server,
                ca=pki.ca.cert_pem,
                certificate=own.cert_pem,
                key=own.key_pem(),
                check=PeerCheck(ku=(0,)),
            )
        )
        for is_server, own in ((False, client), (True, server))
    ]


def pump(sessions, change):
    """Shake hands; `change` may alter each flight of the server's."""
    one, other = sessions
    for _ in range(4):
        one.handshake()
        other.feed(one.outgoing())
        other.handshake()
        one.feed(change(other.outgoing()))
    return one.handshake() and other.handshake()


@given(place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_never_leads_to_a_connection(pki, contexts, place, flip):
    sessions = [context.session(pki.now) for context in contexts]
    changed = []

    def change(flight):
        if changed or not flight:
            return flight
        content = bytearray(flight)
        content[place % len(content)] ^= flip
        changed.append(content)
        return bytes(content)

    with contextlib.suppress(SessionError):
        # The minor version of the first record is not authenticated.
        done = pump(sessions, change)
        assert not done or place % len(changed[0]) == 2


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_any_bytes_are_a_session_error_or_nothing(pki, contexts, chunks):
    for context in contexts:
        session = context.session(pki.now)
        with contextlib.suppress(SessionError):
            session.handshake()
            for chunk in chunks:
                session.feed(b"\x16\x03\x03" + chunk)
                assert not session.handshake()
        session.outgoing()


@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4)
)
def test_any_certificate_is_judged(pki, changes):
    subject = x509.Name.from_rfc4514_string("CN=server,O=Test,C=KG")
    alternative = x509.SubjectAlternativeName([x509.RFC822Name("a@b")])
    leaf = _leaf(pki, subject, alternative)
    content = bytearray(leaf)
    for place, value in changes:
        content[place % len(content)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for check in (
            PeerCheck(name="x", name_type="subject"),
            PeerCheck(
                name="x",
                name_type="name",
                username_field="ext:subjectAltName",
            ),
            PeerCheck(eku="x"),
            PeerCheck(ku=(0xA0,)),
            PeerCheck(ns_cert_type="client"),
            PeerCheck((bytes(32),)),
        ):
            with contextlib.suppress(SessionError, *_MALFORMED):
                check_leaf(
                    x509.load_der_x509_certificate(bytes(content)), check
                )


_leaves = {}


def _leaf(pki, subject, alternative):
    if not _leaves:
        issued = pki.issue(
            subject,
            usage="server",
            ku={"digital_signature": True},
            extra=[alternative],
        )
        der = serialization.Encoding.DER
        _leaves["der"] = issued.certificate.public_bytes(der)
    return _leaves["der"]
