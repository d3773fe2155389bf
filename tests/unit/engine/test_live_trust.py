"""Whom we trust and who trusts us: each directive, live, good and bad."""

import dataclasses
import functools
import hashlib
import re
import ssl
from ipaddress import ip_address

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from lab import pki
from lab.openvpn import Server, Settings, Wrap
from lab.pki import Pki
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.engine import effects
from tests.unit.engine.live import Live, no_file, profile_of

pytestmark = [pytest.mark.netns, pytest.mark.interop]

LOOPBACK = ip_address("127.0.0.1")
GATEWAY = ip_address("10.8.0.1")


@pytest.fixture
def serve(start_server):
    """serve(Pki or None, ...) -> a Server with these certificates."""
    return functools.partial(start_server, wrap=Wrap.PLAIN)


@pytest.fixture
def tell(namespace):
    """tell(server, lines...) -> "" when it opens, else the reason and why."""
    lives = []

    def run(server, *lines, known=None, patience=10):
        lines = (*lines, f"hand-window {patience}")
        settings = dataclasses.replace(server.settings, client_extra=lines)
        side = Server(namespace, server.scratch, settings)
        side.pki = known or server.pki
        live = Live(namespace, profile_of(side))
        lives.append(live)
        live.run_until(
            lambda one: one.of(effects.OpenForwarding) or one.of(effects.Ended)
        )
        if live.of(effects.OpenForwarding):
            assert live.ping_through(GATEWAY)[20] == 0
            return ""
        (ended,) = live.of(effects.Ended)
        assert ended.retry, "somebody else's server is no reason to end"
        return f"{ended.reason}: {ended.detail}"

    run.lives = lives
    yield run
    for live in lives:
        live.close()


# --- chains -------------------------------------------------------------------


@pytest.fixture(scope="module")
def chained():
    """A root, what it vouches for, and leaves of that."""
    root = pki.authority("root")
    middle = pki.authority("middle", root)
    leaves = (pki.issue(name, middle) for name in ("server", "client"))
    return middle, Pki(root, *leaves)


def behind(leaf, issuer):
    """A certificate with its issuer's after it."""
    both = leaf.certificate + issuer.certificate
    return dataclasses.replace(leaf, certificate=both)


def block(name, text):
    return f"<{name}>\n{text.strip()}\n</{name}>"


@pytest.mark.parametrize("how", ["cert", "extra-certs"])
def test_a_chain_through_an_intermediate_authority(serve, tell, chained, how):
    middle, known = chained
    extra = block("extra-certs", middle.certificate)
    if how == "extra-certs":
        assert not tell(serve(known, extra=(extra,)), extra)
        return
    whole = Pki(
        known.ca, behind(known.server, middle), behind(known.client, middle)
    )
    assert not tell(serve(whole))


def test_a_chain_with_a_gap_is_refused_by_both(serve, tell, chained):
    middle, known = chained
    assert tell(serve(known)).startswith("unknown-ca: ca:")
    # ours has the gap
    server = serve(
        known, port=1195, extra=(block("extra-certs", middle.certificate),)
    )
    assert tell(server, patience=1)
    server.wait_for("VERIFY ERROR.*unable to get local issuer certificate")


# --- what the certificate must be ---------------------------------------------


def hexed(identity, algorithm):
    der = ssl.PEM_cert_to_DER_cert(identity.certificate)
    return hashlib.new(algorithm, der).digest().hex(":")


SERVER_EKU = "1.3.6.1.5.5.7.3.1"
CLIENT_EKU = "1.3.6.1.5.5.7.3.2"
CHECKS = (
    ("verify-hash {ca_sha1}", ""),
    ("verify-hash {ca_sha256} SHA256", ""),
    ("verify-hash {leaf_sha256} SHA256", "wrong-fingerprint: verify-hash:"),
    ("remote-cert-ku 88", ""),
    ("remote-cert-ku 20 80", ""),
    ("remote-cert-ku", ""),
    ("remote-cert-ku 20", "wrong-usage: remote-cert-ku:"),
    ('remote-cert-eku "TLS Web Server Authentication"', ""),
    (f"remote-cert-eku {SERVER_EKU}", ""),
    (
        'remote-cert-eku "TLS Web Client Authentication"',
        "wrong-usage: remote-cert-eku:",
    ),
    (f"remote-cert-eku {CLIENT_EKU}", "wrong-usage: remote-cert-eku:"),
    ("remote-cert-tls client", "wrong-usage: remote-cert-eku:"),
    ("ns-cert-type server", ""),
    ("x509-username-field OU\nverify-x509-name basement name", ""),
    ("x509-username-field OU\nverify-x509-name base name-prefix", ""),
    (
        "x509-username-field OU\nverify-x509-name server name",
        "wrong-name: verify-x509-name:",
    ),
    (
        "x509-username-field UID\nverify-x509-name server name",
        "bad-name: the certificate has no UID",
    ),
    ("verify-x509-name 'CN=server, OU=basement'", ""),
    ("verify-x509-name 'CN=server'", "wrong-name: verify-x509-name:"),
    ("peer-fingerprint {leaf_sha256}", ""),
    ("peer-fingerprint {ca_sha256}", "wrong-fingerprint: peer-fingerprint:"),
)


def test_what_the_servers_certificate_must_be(serve, tell):
    known = pki.pki()
    known = dataclasses.replace(
        known, server=pki.issue("server", known.ca, unit="basement")
    )
    server = serve(known)
    values = {
        "ca_sha1": hexed(known.ca, "sha1"),
        "ca_sha256": hexed(known.ca, "sha256"),
        "leaf_sha256": hexed(known.server, "sha256"),
    }
    told = {line: tell(server, line.format(**values)) for line, _ in CHECKS}
    wrong = {
        line: told[line]
        for line, expected in CHECKS
        if not told[line].startswith(expected)
        or bool(told[line] and not expected)
    }
    assert not wrong


def test_a_fingerprint_is_enough_without_an_authority(serve, attach):
    known = pki.pki()
    server = serve(known)
    text = re.sub("(?s)<ca>.*?</ca>\n", "", server.client_profile())
    for shown, passes in ((known.server, True), (known.client, False)):
        line = f"peer-fingerprint {hexed(shown, 'sha256')}\n"
        live = attach(parse_client_profile(text + line, "live.ovpn", no_file))
        live.run_until(
            lambda one: one.of(effects.OpenForwarding) or one.of(effects.Ended)
        )
        assert bool(live.of(effects.OpenForwarding)) == passes


def test_an_authority_and_a_fingerprint_must_both_hold(serve, tell):
    known, other = pki.pki(), pki.pki("another")
    server = serve(known)
    line = f"peer-fingerprint {hexed(known.server, 'sha256')}"
    ours = dataclasses.replace(known, ca=other.ca)
    assert tell(server, line, known=ours).startswith("unknown-ca")


@pytest.mark.parametrize(
    ("bits", "profile", "expected"),
    [
        (1024, "legacy", ""),
        (1024, "preferred", "weak-certificate: tls-cert-profile:"),
        (2048, "preferred", ""),
    ],
)
def test_how_strong_a_certificate_must_be(serve, tell, bits, profile, expected):
    known = pki.pki()
    key = rsa.generate_private_key(65537, bits)
    weak = dataclasses.replace(
        known, server=pki.issue("server", known.ca, key=key)
    )
    server = serve(weak, extra=("tls-cert-profile legacy",))
    assert tell(server, f"tls-cert-profile {profile}").startswith(expected)


# --- revocation ---------------------------------------------------------------


def test_revocation_lists(serve, tell):
    known = pki.pki()
    server = serve(known)
    lists = {
        "": pki.revocations(known.ca),
        "certificate-revoked": pki.revocations(known.ca, known.server),
        "crl-expired": pki.revocations(known.ca, days=-1),
        "crl-missing": pki.revocations(pki.pki("another").ca),
    }
    for expected, crl in lists.items():
        told = tell(server, block("crl-verify", crl))
        assert told.partition(":")[0] == expected


# --- how TLS is spoken --------------------------------------------------------

TLS12 = "tls-version-max 1.2"
SPOKEN = (
    (
        (TLS12, "tls-cipher TLS-ECDHE-ECDSA-WITH-AES-256-GCM-SHA384"),
        "TLSv1.2 ECDHE-ECDSA-AES256-GCM-SHA384",
    ),
    (
        (TLS12, "tls-cipher TLS-ECDHE-ECDSA-WITH-CHACHA20-POLY1305-SHA256"),
        "TLSv1.2 ECDHE-ECDSA-CHACHA20-POLY1305",
    ),
    (
        ("tls-ciphersuites TLS_CHACHA20_POLY1305_SHA256",),
        "TLSv1.3 TLS_CHACHA20_POLY1305_SHA256",
    ),
    (
        ("tls-ciphersuites TLS_AES_128_GCM_SHA256",),
        "TLSv1.3 TLS_AES_128_GCM_SHA256",
    ),
    (("tls-groups secp384r1",), "TLSv1.3 "),
    (("tls-version-min 1.3 or-highest",), "TLSv1.3 "),
)


def test_suites_and_groups_are_the_ones_that_are_asked_for(serve, tell):
    server = serve()
    for lines, expected in SPOKEN:
        assert not tell(server, *lines)
        assert tell.lives[-1].engine.status.tls.startswith(expected)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (
            (TLS12, "tls-cipher TLS-ECDHE-ECDSA-WITH-AES-256-GCM-SHA384"),
            "tls-cipher TLS-ECDHE-ECDSA-WITH-AES-128-GCM-SHA256",
        ),
        (
            ("tls-ciphersuites TLS_AES_256_GCM_SHA384", "tls-version-min 1.3"),
            "tls-ciphersuites TLS_AES_128_GCM_SHA256",
        ),
        (("tls-groups secp521r1",), "tls-groups secp384r1"),
    ],
    ids=["cipher", "suite", "group"],
)
def test_nothing_in_common_is_no_tunnel(serve, tell, theirs, ours):
    # openvpn says nothing then, and waits
    told = tell(serve(extra=theirs), ours, patience=1)
    assert told.startswith("handshake-timeout")


@pytest.mark.parametrize(
    ("digest", "theirs", "ours"),
    [
        ("MD5", "", ""),
        ("SHA1", "key-direction 0", "key-direction 1"),
        ("SHA224", "key-direction 1", "key-direction 0"),
        ("SHA256", "", ""),
        ("SHA384", "key-direction 0", "key-direction 1"),
        ("SHA512", "key-direction 1", "key-direction 0"),
    ],
)
def test_tls_auth_by_digest_and_direction(
    namespace, tmp_path, attach, digest, theirs, ours
):
    class Directed(Server):
        def config(self):
            text = super().config()
            return text.replace("key-direction 0", theirs)

    settings = Settings(address=LOOPBACK, wrap=Wrap.TLS_AUTH, auth=digest)
    with Directed(namespace, tmp_path, settings) as server:
        text = server.client_profile().replace("key-direction 1", ours)
        live = attach(parse_client_profile(text, "live.ovpn", no_file))
        live.run_until(lambda one: one.of(effects.OpenForwarding))
        assert live.ping_through(GATEWAY)[20] == 0
