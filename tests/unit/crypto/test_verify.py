import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID

from qubes_vpn.crypto.verify import (
    PeerCheck,
    check_leaf,
    common_name,
    subject_text,
)
from qubes_vpn.errors import SessionError

KG = [
    (NameOID.COUNTRY_NAME, "KG"),
    (NameOID.STATE_OR_PROVINCE_NAME, "NA"),
    (NameOID.ORGANIZATION_NAME, "OpenVPN-TEST"),
    (NameOID.COMMON_NAME, "Test-Server"),
    (NameOID.EMAIL_ADDRESS, "me@myhost.mydomain"),
]
SUBJECT = (
    "C=KG, ST=NA, O=OpenVPN-TEST, CN=Test-Server,"
    " emailAddress=me@myhost.mydomain"
)
NS_CERT_TYPE = x509.ObjectIdentifier("2.16.840.1.113730.1.1")


def name(*pairs):
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


def netscape(content):
    return x509.UnrecognizedExtension(NS_CERT_TYPE, content)


def reason(leaf, **check):
    try:
        check_leaf(leaf.certificate, PeerCheck(**check))
    except SessionError as error:
        return error.reason
    return None


@pytest.fixture(scope="module")
def plain(pki):
    return pki.issue(name(*KG))


def test_a_subject_is_printed_as_openvpn_prints_it(plain):
    assert subject_text(plain.certificate) == SUBJECT


def test_rare_subjects(pki):
    several = x509.Name(
        [
            x509.RelativeDistinguishedName(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, "a"),
                    x509.NameAttribute(NameOID.USER_ID, "b"),
                ]
            )
        ]
    )
    text = subject_text(pki.issue(several).certificate)
    assert sorted(text.split(" + ")) == ["CN=a", "UID=b"]
    odd = name((x509.ObjectIdentifier("1.2.3.4"), "x"))
    assert subject_text(pki.issue(odd).certificate) == "1.2.3.4=x"
    ctrl = name((NameOID.COMMON_NAME, "a\n\x7fä"))
    assert subject_text(pki.issue(ctrl).certificate) == "CN=a\\0A\\7Fä"


def test_the_last_common_name_counts(pki):
    twice = name((NameOID.COMMON_NAME, "evil"), (NameOID.COMMON_NAME, "good"))
    assert common_name(pki.issue(twice).certificate) == "good"


@pytest.mark.parametrize("field", ["CN", "O"])
def test_a_name_with_a_nul_is_refused(pki, field):
    oid = {"CN": NameOID.COMMON_NAME, "O": NameOID.ORGANIZATION_NAME}[field]
    leaf = pki.issue(name((oid, "server\0.evil")))
    with pytest.raises(SessionError) as caught:
        common_name(leaf.certificate, field)
    assert caught.value.reason == "bad-name"
    for kind in ("subject", "name", "name-prefix"):
        assert reason(leaf, name="server", name_type=kind) == "bad-name"


def test_names_come_from_the_field_that_was_chosen(pki, plain):
    assert common_name(plain.certificate, "emailaddress") == KG[4][1]
    with pytest.raises(SessionError) as caught:
        common_name(plain.certificate, "UID")
    assert caught.value.reason == "bad-name"
    alternative = x509.SubjectAlternativeName(
        [x509.DNSName("host"), x509.RFC822Name("a@b"), x509.RFC822Name("c@d")]
    )
    leaf = pki.issue(extra=[alternative]).certificate
    assert common_name(leaf, "ext:subjectAltName") == "a@b"
    with pytest.raises(SessionError):
        common_name(plain.certificate, "ext:subjectAltName")


@pytest.mark.parametrize(
    ("kind", "wanted", "right"),
    [
        ("subject", SUBJECT, True),
        ("subject", SUBJECT.replace(", ", ","), False),
        ("subject", "Test-Server", False),
        ("name", "Test-Server", True),
        ("name", "Test-Serve", False),
        ("name", "test-server", False),
        ("name", "", False),
        ("name-prefix", "Test-Serv", True),
        ("name-prefix", "Server", False),
    ],
)
def test_names_match_exactly(plain, kind, wanted, right):
    found = reason(plain, name=wanted, name_type=kind)
    assert found == (None if right else "wrong-name")


@pytest.mark.parametrize(
    ("usage", "wanted", "right"),
    [
        ("server", "TLS Web Server Authentication", True),
        ("server", "1.3.6.1.5.5.7.3.1", True),
        ("server", "TLS Web Client Authentication", False),
        ("client", "TLS Web Server Authentication", False),
        (None, "TLS Web Server Authentication", False),
        (x509.ObjectIdentifier("1.2.3.4"), "1.2.3.4", True),
        ("server", "nonsense", False),
    ],
)
def test_extended_key_usages(pki, usage, wanted, right):
    found = reason(pki.issue(usage=usage), eku=wanted)
    assert found == (None if right else "wrong-usage")


@pytest.mark.parametrize(
    ("usage", "accepted", "right"),
    [
        ({"digital_signature": 1}, (0,), True),
        (None, (0,), False),
        (None, (0xA0,), False),
        ({"digital_signature": 1, "key_encipherment": 1}, (0xA0,), True),
        ({"digital_signature": 1}, (0xA0,), False),
        ({"digital_signature": 1}, (0xA0, 0x80), True),
        ({"key_agreement": 1, "digital_signature": 1}, (0x88,), True),
        ({"key_cert_sign": 1, "crl_sign": 1}, (0x06,), True),
        ({"content_commitment": 1}, (0x40,), True),
        ({"data_encipherment": 1}, (0x10,), True),
    ],
)
def test_key_usages(pki, usage, accepted, right):
    found = reason(pki.issue(ku=usage), ku=accepted)
    assert found == (None if right else "wrong-usage")


@pytest.mark.parametrize(
    ("options", "wanted", "right"),
    [
        ({"usage": "server"}, "server", True),
        ({"usage": "client"}, "server", False),
        ({"usage": "client"}, "client", True),
        ({}, "server", False),
        ({"extra": [netscape(b"\x03\x02\x06\x40")]}, "server", True),
        ({"extra": [netscape(b"\x03\x02\x06\x40")]}, "client", False),
        ({"extra": [netscape(b"\x03\x02\x06\xc0")]}, "client", True),
        ({"extra": [netscape(b"\x04\x02\x06\x40")]}, "server", False),
        ({"extra": [netscape(b"\x03\x02\x06")]}, "server", False),
        ({"extra": [netscape(b"")]}, "server", False),
    ],
)
def test_the_old_netscape_type(pki, options, wanted, right):
    found = reason(pki.issue(**options), ns_cert_type=wanted)
    assert found == (None if right else "wrong-usage")


def test_the_reason_names_the_directive(plain):
    for check, directive in (
        (PeerCheck(name="x", name_type="name"), "verify-x509-name"),
        (PeerCheck(eku="x"), "remote-cert-eku"),
        (PeerCheck(ku=(0xA0,)), "remote-cert-ku"),
        (PeerCheck(ns_cert_type="server"), "ns-cert-type"),
        (PeerCheck((bytes(32),)), "peer-fingerprint"),
    ):
        with pytest.raises(SessionError) as caught:
            check_leaf(plain.certificate, check)
        assert caught.value.detail.startswith(f"{directive}: ")


def test_without_checks_every_leaf_is_right(plain):
    assert reason(plain) is None
    assert reason(plain, fingerprints=(plain.fingerprint,)) is None
