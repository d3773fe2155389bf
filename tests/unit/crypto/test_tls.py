import datetime
import time
import warnings
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from OpenSSL import SSL, crypto

from qubes_vpn.crypto.tls import TlsContext, TlsSettings
from qubes_vpn.crypto.verify import PeerCheck
from qubes_vpn.errors import ConfigError, SessionError

DAY = datetime.timedelta(days=1)


@pytest.fixture
def sides(pki, server, client):
    """Settings of a client and a server that get along."""
    return (
        TlsSettings(
            ca=pki.ca.cert_pem,
            certificate=client.cert_pem,
            key=client.key_pem(),
        ),
        TlsSettings(
            is_server=True,
            ca=pki.ca.cert_pem,
            certificate=server.cert_pem,
            key=server.key_pem(),
        ),
    )


def start(settings, now):
    return TlsContext(settings).session(now)


def talk(one, other):
    """Pass bytes both ways until nothing is left to pass."""
    while True:
        first, second = one.outgoing(), other.outgoing()
        if not first and not second:
            return
        other.feed(first)
        one.feed(second)
        one.handshake()
        other.handshake()


def connect(sides, now):
    client, server = (start(settings, now) for settings in sides)
    assert not client.handshake()
    talk(client, server)
    assert client.handshake()
    assert server.handshake()
    return client, server


def failure(sides, now):
    """Return the reasons of the client's and the server's failure."""
    both = [start(settings, now) for settings in sides]
    reasons = [None, None]
    for _ in range(10):
        for index, session in enumerate(both):
            try:
                session.handshake()
                session.read()
            except SessionError as error:
                reasons[index] = reasons[index] or error
            both[1 - index].feed(session.outgoing())
    return reasons


def client_fails(sides, now):
    error, _ = failure(sides, now)
    assert error is not None
    return error.reason


def change(sides, client=None, server=None):
    return (
        replace(sides[0], **(client or {})),
        replace(sides[1], **(server or {})),
    )


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_both_sides_speak(pki, sides, version):
    client, server = connect(change(sides, {"version_max": version}), pki.now)
    assert client.version == server.version == f"TLSv{version}"
    assert client.cipher == server.cipher != ""
    client.write(b"question")
    server.feed(client.outgoing())
    assert server.read() == b"question"
    server.write(b"answer")
    client.feed(server.outgoing())
    assert client.read() == b"answer"
    assert client.read() == b""


def test_one_read_is_one_record(pki, sides):
    client, server = connect(sides, pki.now)
    for part in (b"one\0", b"two\0"):
        client.write(part)
    server.feed(client.outgoing())
    assert [server.read() for _ in range(3)] == [b"one\0", b"two\0", b""]


def test_bytes_may_come_one_by_one(pki, sides):
    client, server = (start(settings, pki.now) for settings in sides)
    for _ in range(6):
        for one, other in ((client, server), (server, client)):
            one.handshake()
            for byte in one.outgoing():
                other.feed(bytes((byte,)))
                other.handshake()
    assert client.handshake()
    assert server.handshake()


def test_keying_material_is_the_same_on_both_sides(pki, sides):
    client, server = connect(sides, pki.now)
    label = b"EXPORTER-OpenVPN-datakeys"
    material = client.export(label, 256)
    assert len(material) == 256
    assert material == server.export(label, 256)
    assert material != client.export(b"EXPORTER-other", 256)
    assert material != client.export(label, 256, b"context")


def test_the_chain_begins_with_the_peer(pki, sides, server, client):
    one, other = connect(sides, pki.now)
    assert one.peer_certificate() == server.certificate
    assert other.peer_certificate() == client.certificate


def test_before_the_handshake_nothing_is_known(pki, sides):
    session = start(sides[0], pki.now)
    assert session.peer_certificate() is None
    assert session.cipher == ""
    session.feed(b"")
    with pytest.raises(SessionError):
        session.write(b"x")


def test_an_intermediate_is_sent_and_verified(pki, sides):
    middle = pki.issue("middle", is_ca=True)
    leaf = pki.issue("server", issuer=middle)
    as_chain = {"certificate": leaf.cert_pem, "chain": middle.cert_pem}
    as_bundle = {"certificate": leaf.cert_pem + middle.cert_pem}
    for identity in (as_chain, as_bundle):
        client, _ = connect(
            change(sides, server=identity | {"key": leaf.key_pem()}), pki.now
        )
        assert client.peer_certificate() == leaf.certificate


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_no_session_is_resumed(pki, sides, version):
    both = change(sides, {"version_max": version})
    client, server = (TlsContext(settings) for settings in both)
    # A connection that is freed without a goodbye spoils its session.
    keys, kept, old = [], [], None
    for _ in range(2):
        one, other = client.session(pki.now), server.session(pki.now)
        if old is not None:
            one._connection.set_session(old)
        one.handshake()
        talk(one, other)
        one.read()
        old = one._connection.get_session()
        keys.append(one._connection.master_key())
        kept.append((one, other))
    assert keys[0] != keys[1]
    # A resumed handshake would not have shown the certificate again.
    assert one._verdict.leaf_checked


@pytest.mark.parametrize("days", [-2, 2])
def test_a_certificate_out_of_its_time_is_refused(pki, sides, days):
    reason = client_fails(sides, pki.now + days * 86400)
    assert (
        reason
        in {
            -2: {"certificate-not-yet-valid"},
            2: {"certificate-expired"},
        }[days]
    )


def test_an_expired_certificate_hints_at_the_clock(pki, sides):
    error, other = failure(sides, pki.now + 2 * 86400)
    assert "check the clock" in error.detail
    assert other.reason == "tls-alert:certificate-expired"
    assert other.detail.startswith("cert:")


def test_another_authority_is_unknown(pki, sides):
    other = pki.issue("Test CA", issuer=None, is_ca=True)
    changed = change(sides, {"ca": other.cert_pem})
    assert client_fails(changed, pki.now) == "bad-signature"
    other = pki.issue("Other CA", issuer=None, is_ca=True)
    assert (
        client_fails(change(sides, {"ca": other.cert_pem}), pki.now)
        == "unknown-ca"
    )


def test_a_self_signed_server_is_refused(pki, sides):
    alone = pki.issue("server", issuer=None)
    identity = {"certificate": alone.cert_pem, "key": alone.key_pem()}
    changed = change(sides, server=identity)
    assert client_fails(changed, pki.now) == "self-signed"


def test_a_leaf_that_issues_is_no_authority(pki, sides, client):
    leaf = pki.issue("server", issuer=client)
    identity = {
        "certificate": leaf.cert_pem + client.cert_pem,
        "key": leaf.key_pem(),
    }
    changed = change(sides, server=identity)
    assert client_fails(changed, pki.now) == "invalid-ca"
    pinned = {"ca": b"", "check": PeerCheck((leaf.fingerprint,))}
    connect(change(changed, pinned), pki.now)


def test_a_long_chain_is_refused(pki, sides):
    chain = [pki.issue("authority 0", is_ca=True)]
    for number in range(1, 20):
        chain.insert(
            0, pki.issue(f"authority {number}", issuer=chain[0], is_ca=True)
        )
    leaf = pki.issue("server", issuer=chain[0])
    identity = {
        "certificate": leaf.cert_pem,
        "chain": b"".join(issued.cert_pem for issued in chain),
        "key": leaf.key_pem(),
    }
    assert (
        client_fails(change(sides, server=identity), pki.now)
        == "chain-too-long"
    )


RSA_SHA256 = bytes.fromhex("300d06092a864886f70d01010b0500")
ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")


def der(tag, content):
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8)
    return bytes((tag, 0x80 | len(length))) + length + content


def as_pem(body, algorithm, signature):
    """Make a certificate of its parts, which may be wrong."""
    whole = der(0x30, body + algorithm + der(3, b"\0" + signature))
    return x509.load_der_x509_certificate(whole).public_bytes(
        serialization.Encoding.PEM
    )


@pytest.mark.parametrize("known", [True, False])
def test_a_key_of_16384_bits_costs_next_to_nothing(pki, sides, known):
    """The authority's own, or a stranger's: no more than a signature's work."""

    class Huge:
        numbers = rsa.RSAPublicNumbers(2**63 + 1, 2**16383 + 2**8191 + 1)

        def public_key(self):
            return self.numbers.public_key()

    stranger = pki.issue("stranger", issuer=None, is_ca=True)
    issuer = pki.ca if known else stranger
    middle = pki.issue("middle", issuer=issuer, is_ca=True, key=Huge())
    # the huge key cannot sign: any RSA key makes the certificate's body
    middle.key = rsa.generate_private_key(65537, 2048)
    leaf = pki.issue("server", issuer=middle)
    server = {
        "certificate": as_pem(
            leaf.certificate.tbs_certificate_bytes, RSA_SHA256, bytes(2048)
        ),
        "chain": middle.cert_pem,
        "key": leaf.key_pem(),
    }
    before = time.process_time()
    error, _ = failure(change(sides, server=server), pki.now)
    assert time.process_time() - before < 1
    wanted = "bad-signature" if known else "unknown-ca"
    assert error.reason == wanted


@pytest.mark.parametrize("hostile", [0, 1], ids=["client", "server"])
def test_what_comes_after_the_certificate_may_be_anything(pki, sides, hostile):
    """OpenSSL takes a version that is none, and sends it to the peer."""
    der = bytearray(
        pki.issue().certificate.public_bytes(serialization.Encoding.DER)
    )
    der[der.index(b"\xa0\3\2\1\2") + 4] = 9
    with pytest.raises(x509.InvalidVersion):
        x509.load_der_x509_certificate(bytes(der))
    strange = crypto.load_certificate(crypto.FILETYPE_ASN1, bytes(der))
    contexts = [TlsContext(settings) for settings in sides]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        contexts[hostile]._context.add_extra_chain_cert(strange)
    client, server = (context.session(pki.now) for context in contexts)
    client.handshake()
    talk(client, server)
    assert client.handshake()
    assert server.handshake()
    assert client.peer_certificate()
    assert server.peer_certificate()


@pytest.mark.parametrize("hostile", [0, 1], ids=["client", "server"])
def test_a_subject_that_nobody_can_read_is_malformed(pki, sides, hostile):
    """A title that is a bit string, in a certificate of our own authority."""
    name = x509.Name.from_rfc4514_string("2.5.4.12=\\00title")
    issued = pki.issue(name, usage=("client", "server")[hostile])
    body = issued.certificate.tbs_certificate_bytes
    text, bits = (bytes((tag, 6)) + b"\0title" for tag in (0x0C, 3))
    assert text in body
    body = body.replace(text, bits)
    signature = pki.ca.key.sign(body, ec.ECDSA(hashes.SHA256()))
    identity = {
        "certificate": as_pem(body, ECDSA_SHA256, signature),
        "key": issued.key_pem(),
    }
    changed = list(sides)
    changed[hostile] = replace(changed[hostile], **identity)
    error = failure(changed, pki.now)[1 - hostile]
    assert error.reason == "bad-certificate"


def test_a_client_certificate_is_no_server(pki, sides, client):
    identity = {"certificate": client.cert_pem, "key": client.key_pem()}
    assert (
        client_fails(change(sides, server=identity), pki.now) == "wrong-usage"
    )


@pytest.mark.parametrize("fingerprints_of", ["server", "both"])
def test_a_fingerprint_alone_makes_a_peer(pki, sides, fingerprints_of):
    alone = pki.issue("server", issuer=None)
    other = pki.issue("other", issuer=None)
    known = [alone.fingerprint]
    if fingerprints_of == "both":
        known.insert(0, other.fingerprint)
    changed = change(
        sides,
        {"ca": b"", "check": PeerCheck(tuple(known))},
        {"certificate": alone.cert_pem, "key": alone.key_pem()},
    )
    client, _ = connect(changed, pki.now)
    assert client.peer_certificate() == alone.certificate


def test_a_fingerprint_alone_suits_a_certificate_with_an_issuer(
    pki, sides, server
):
    check = PeerCheck((server.fingerprint,))
    connect(change(sides, {"ca": b"", "check": check}), pki.now)


@pytest.mark.parametrize("with_ca", [True, False])
def test_another_fingerprint_is_refused(pki, sides, with_ca):
    check = {"check": PeerCheck((bytes(32),))}
    if not with_ca:
        check["ca"] = b""
    error, other = failure(change(sides, check), pki.now)
    assert error.reason == "wrong-fingerprint"
    assert error.detail.startswith("peer-fingerprint")
    # The server learns that by an alert, and gets no certificate of ours.
    assert other.reason.startswith("tls-alert:")


def test_an_expired_certificate_is_refused_in_spite_of_its_fingerprint(
    pki, sides, server
):
    check = PeerCheck((server.fingerprint,))
    changed = change(sides, {"ca": b"", "check": check})
    assert client_fails(changed, pki.now + 2 * 86400) == "certificate-expired"


def test_the_issuers_hash_is_checked(pki, sides):
    for name, kind in (("SHA256", hashes.SHA256()), ("SHA1", hashes.SHA1())):
        right = (name, pki.ca.certificate.fingerprint(kind))
        connect(change(sides, {"check": PeerCheck(verify_hash=right)}), pki.now)
        wrong = (name, bytes(len(right[1])))
        check = PeerCheck(verify_hash=wrong)
        assert (
            client_fails(change(sides, {"check": check}), pki.now)
            == "wrong-fingerprint"
        )


def test_without_an_issuer_its_hash_cannot_match(pki, sides):
    alone = pki.issue("server", issuer=None)
    check = PeerCheck(
        (alone.fingerprint,), verify_hash=("SHA256", alone.fingerprint)
    )
    changed = change(
        sides,
        {"ca": b"", "check": check},
        {"certificate": alone.cert_pem, "key": alone.key_pem()},
    )
    assert client_fails(changed, pki.now) == "wrong-fingerprint"


@pytest.mark.parametrize(
    ("check", "reason"),
    [
        (PeerCheck(name="server", name_type="name"), None),
        (PeerCheck(name="serv", name_type="name-prefix"), None),
        (PeerCheck(name="CN=server", name_type="subject"), None),
        (PeerCheck(name="Server", name_type="name"), "wrong-name"),
        (PeerCheck(name="erv", name_type="name-prefix"), "wrong-name"),
        (PeerCheck(name="server", name_type="subject"), "wrong-name"),
        (PeerCheck(ku=(0,), eku="TLS Web Server Authentication"), None),
        (PeerCheck(eku="TLS Web Client Authentication"), "wrong-usage"),
    ],
)
def test_checks_run_in_the_handshake(pki, sides, check, reason):
    changed = change(sides, {"check": check})
    if reason:
        assert client_fails(changed, pki.now) == reason
    else:
        connect(changed, pki.now)


def test_a_list_that_does_not_name_the_server_is_fine(pki, sides, client):
    connect(change(sides, {"crl": pki.crl([client])}), pki.now)


def serial_of(issued):
    return str(issued.certificate.serial_number)


def test_a_serial_number_that_is_revoked_is_refused(pki, sides, server):
    for issued, reason in ((server, "depth 0"), (pki.ca, "depth 1")):
        check = PeerCheck(revoked=frozenset({"1", serial_of(issued)}))
        changed = change(sides, {"check": check})
        error, _ = failure(changed, pki.now)
        assert error.reason == "certificate-revoked"
        assert reason in error.detail
    check = PeerCheck(revoked=frozenset({"1"}))
    connect(change(sides, {"check": check}), pki.now)


def test_a_fingerprint_does_not_excuse_a_revoked_issuer(pki, sides, server):
    check = PeerCheck((server.fingerprint,), revoked={serial_of(pki.ca)})
    sent = {"chain": pki.ca.cert_pem}
    changed = change(sides, {"ca": b"", "check": check}, sent)
    assert client_fails(changed, pki.now) == "certificate-revoked"
    check = PeerCheck((server.fingerprint,))
    changed = change(sides, {"ca": b"", "check": check}, sent)
    connect(changed, pki.now)


def test_a_revoked_server_is_refused(pki, sides, server):
    changed = change(sides, {"crl": pki.crl([server])})
    assert client_fails(changed, pki.now) == "certificate-revoked"


def test_lists_out_of_their_time_are_refused(pki, sides):
    old = pki.crl(start=-3 * DAY, end=-2 * DAY)
    assert client_fails(change(sides, {"crl": old}), pki.now) == "crl-expired"
    new = pki.crl(start=2 * DAY, end=3 * DAY)
    assert (
        client_fails(change(sides, {"crl": new}), pki.now)
        == "crl-not-yet-valid"
    )


def test_a_list_of_another_issuer_is_not_enough(pki, sides):
    other = pki.issue("Other CA", issuer=None, is_ca=True)
    crl = pki.crl(issuer=other)
    assert client_fails(change(sides, {"crl": crl}), pki.now) == "crl-missing"


def test_a_list_of_the_leafs_issuer_is_enough(pki, sides):
    middle = pki.issue("middle", is_ca=True)
    leaf = pki.issue("server", issuer=middle)
    changed = change(
        sides,
        {"crl": pki.crl(issuer=middle)},
        {
            "certificate": leaf.cert_pem,
            "chain": middle.cert_pem,
            "key": leaf.key_pem(),
        },
    )
    connect(changed, pki.now)


def test_a_revoked_intermediate_is_refused(pki, sides):
    middle = pki.issue("middle", is_ca=True)
    leaf = pki.issue("server", issuer=middle)
    changed = change(
        sides,
        {"crl": pki.crl(issuer=middle) + pki.crl([middle])},
        {
            "certificate": leaf.cert_pem,
            "chain": middle.cert_pem,
            "key": leaf.key_pem(),
        },
    )
    assert client_fails(changed, pki.now) == "certificate-revoked"


@pytest.mark.parametrize("verify", ["require", "optional", "none"])
def test_a_server_asks_for_certificates_as_told(pki, sides, verify):
    without = {"certificate": b"", "key": b""}
    changed = change(sides, without, {"verify": verify})
    if verify == "require":
        _, error = failure(changed, pki.now)
        assert error.reason == "no-certificate"
    else:
        _, server = connect(changed, pki.now)
        assert server.peer_certificate() is None


@pytest.mark.parametrize("verify", ["optional", "none"])
def test_a_wrong_client_is_refused_even_if_optional(pki, sides, verify):
    alone = pki.issue("client", issuer=None)
    changed = change(
        sides,
        {"certificate": alone.cert_pem, "key": alone.key_pem()},
        {"verify": verify},
    )
    if verify == "none":
        connect(changed, pki.now)
    else:
        _, error = failure(changed, pki.now)
        assert error.reason == "self-signed"


def test_a_server_certificate_is_no_client(pki, sides, server):
    identity = {"certificate": server.cert_pem, "key": server.key_pem()}
    _, error = failure(change(sides, identity), pki.now)
    assert error.reason == "wrong-usage"


def test_versions_that_do_not_meet(pki, sides):
    changed = change(sides, {"version_min": "1.3"}, {"version_max": "1.2"})
    error, other = failure(changed, pki.now)
    assert error.reason == "tls-alert:protocol-version"
    assert error.detail.startswith("tls-version-min")
    assert other.reason == "tls-version"


def test_below_1_2_nothing_is_spoken_whatever_the_profile_says(pki, sides):
    old = {"version_min": "1.0", "cert_profile": "insecure"}
    client, server = (
        TlsContext(settings) for settings in change(sides, old, old)
    )
    server._context.set_min_proto_version(SSL.TLS1_VERSION)
    server._context.set_max_proto_version(SSL.TLS1_1_VERSION)
    one, other = client.session(pki.now), server.session(pki.now)
    one.handshake()
    with pytest.raises(SessionError) as caught:
        talk(one, other)
    assert caught.value.reason == "tls-version"


def test_ciphers_that_do_not_meet(pki, sides):
    changed = change(
        sides,
        {
            "version_max": "1.2",
            "cipher": "TLS-ECDHE-ECDSA-WITH-AES-256-GCM-SHA384",
        },
        {"cipher": "TLS-ECDHE-ECDSA-WITH-CHACHA20-POLY1305-SHA256"},
    )
    error, other = failure(changed, pki.now)
    assert error.reason == "tls-alert:handshake-failure"
    assert error.detail.startswith("tls-cipher")
    assert other.reason == "tls-cipher"


def test_the_chosen_ciphers_are_used(pki, sides):
    changed = change(
        sides,
        {
            "version_max": "1.2",
            "cipher": "TLS-ECDHE-ECDSA-WITH-AES-256-GCM-SHA384",
        },
    )
    client, _ = connect(changed, pki.now)
    assert client.cipher == "ECDHE-ECDSA-AES256-GCM-SHA384"


@pytest.fixture(params=["set", "checked"])
def old_and_new_pyopenssl(request, monkeypatch):
    if request.param == "checked":
        monkeypatch.delattr(
            SSL.Context, "set_tls13_ciphersuites", raising=False
        )
    elif not hasattr(SSL.Context, "set_tls13_ciphersuites"):
        pytest.skip("this pyOpenSSL cannot set them")
    return request.param


def test_the_chosen_suites_are_used(pki, sides, old_and_new_pyopenssl):
    default = "TLS_AES_256_GCM_SHA384"
    other = "TLS-CHACHA20-POLY1305-SHA256"
    changed = change(sides, {"ciphersuites": f"{other}:{default}"})
    client, _ = connect(changed, pki.now)
    assert client.cipher in {default, other.replace("-", "_")}
    changed = change(sides, {"ciphersuites": other})
    if old_and_new_pyopenssl == "set":
        client, _ = connect(changed, pki.now)
        assert client.cipher == other.replace("-", "_")
    else:
        error, _ = failure(changed, pki.now)
        assert error.reason == "tls-cipher"
        assert error.detail.startswith("tls-ciphersuites")


def test_the_chosen_group_is_used(pki, sides):
    changed = change(sides, {"groups": "X25519:secp521r1"})
    client, _ = connect(changed, pki.now)
    if hasattr(client._connection, "get_group_name"):
        assert client._connection.get_group_name() == "secp521r1"
    changed = change(sides, {"groups": "secp384r1"}, {"groups": "secp521r1"})
    assert failure(changed, pki.now)[1].reason == "tls-groups"


@pytest.fixture
def group_is_told():
    if not hasattr(SSL.Connection, "get_group_name"):
        pytest.skip("this pyOpenSSL does not tell the group")


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.usefixtures("group_is_told")
def test_a_group_that_cannot_be_set_is_looked_at(pki, sides, version):
    of_peer = {"version_max": version}
    best = "X25519MLKEM768:X25519"
    connect(change(sides, {"groups": best}, of_peer), pki.now)
    changed = change(
        sides, {"groups": best}, {**of_peer, "groups": "secp256r1"}
    )
    error, _ = failure(changed, pki.now)
    assert error.reason == "tls-groups"
    assert error.detail == "tls-groups: the peer chose secp256r1"


@pytest.mark.usefixtures("group_is_told")
def test_without_elliptic_curves_there_is_no_group(pki, sides):
    key = rsa.generate_private_key(65537, 2048)
    leaf = pki.issue("server", key=key, usage="server")
    changed = change(
        sides,
        {"groups": "X25519", "cipher": "AES256-GCM-SHA384"},
        {
            "version_max": "1.2",
            "cipher": "AES256-GCM-SHA384",
            "certificate": leaf.cert_pem,
            "key": leaf.key_pem(),
        },
    )
    error, _ = failure(changed, pki.now)
    assert error.detail == "tls-groups: the peer chose none"


def test_an_older_pyopenssl_cannot_look_at_the_group(sides, monkeypatch):
    def missing(self):
        raise NotImplementedError

    monkeypatch.setattr(
        SSL.Connection, "get_group_name", missing, raising=False
    )
    with pytest.raises(ConfigError, match="does not tell which group"):
        TlsContext(replace(sides[0], groups="X25519"))


def test_a_server_sets_its_group_or_is_refused(sides):
    with pytest.raises(ConfigError, match="none of them"):
        TlsContext(replace(sides[1], groups="X25519"))


def test_a_weak_key_is_refused_by_the_profile(pki, sides):
    weak = rsa.generate_private_key(65537, 1024)
    leaf = pki.issue("server", key=weak)
    changed = change(
        sides,
        {"cert_profile": "preferred"},
        {
            "certificate": leaf.cert_pem,
            "key": leaf.key_pem(),
            "cert_profile": "insecure",
        },
    )
    assert client_fails(changed, pki.now) == "weak-certificate"
    with pytest.raises(ConfigError, match=r"^cert: OpenSSL refuses it"):
        TlsContext(replace(changed[1], cert_profile="preferred"))


def test_a_closed_connection_is_a_session_error(pki, sides):
    client, server = connect(sides, pki.now)
    server._connection.shutdown()
    client.feed(server.outgoing())
    with pytest.raises(SessionError) as caught:
        client.read()
    assert caught.value.reason == "tls-closed"


def test_garbage_is_a_session_error(pki, sides):
    client, _ = connect(sides, pki.now)
    client.feed(b"\x17\x03\x03\x00\x20" + bytes(32))
    with pytest.raises(SessionError):
        client.read()
    fresh = start(sides[0], pki.now)
    fresh.handshake()
    fresh.feed(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(SessionError) as caught:
        fresh.handshake()
    assert caught.value.reason in {"tls-version", "tls-error"}


def test_renegotiation_is_refused(pki, sides):
    client, _ = connect(change(sides, {"version_max": "1.2"}), pki.now)
    with pytest.raises(SSL.Error, match="no renegotiation"):
        client._connection.renegotiate()


def test_a_context_serves_many_sessions(pki, sides):
    client, server = (TlsContext(settings) for settings in sides)
    for _ in range(3):
        one, other = client.session(pki.now), server.session(pki.now)
        one.handshake()
        talk(one, other)
        assert one.handshake()


def test_a_check_that_did_not_run_is_noticed(pki, sides):
    client, server = (TlsContext(settings) for settings in sides)
    client._context.set_verify(SSL.VERIFY_NONE)
    one, other = client.session(pki.now), server.session(pki.now)
    one.handshake()
    with pytest.raises(SessionError) as caught:
        talk(one, other)
    assert caught.value.reason == "verify-failed"


def test_a_peer_without_a_certificate_is_noticed(pki, sides):
    both = change(sides, {"version_max": "1.2"}, {"verify": "none"})
    client, server = (TlsContext(settings) for settings in both)
    for context in (client, server):
        context._context.set_cipher_list(b"AECDH-AES256-SHA:@SECLEVEL=0")
    one, other = client.session(pki.now), server.session(pki.now)
    one.handshake()
    with pytest.raises(SessionError) as caught:
        talk(one, other)
    assert caught.value.reason == "no-certificate"


def test_a_certificate_that_cannot_be_parsed_is_refused(pki, sides):
    bad = x509.UnrecognizedExtension(x509.ExtendedKeyUsage.oid, b"\x05")
    key_usage = x509.UnrecognizedExtension(x509.KeyUsage.oid, b"\x05")
    for extension in (bad, key_usage):
        leaf = pki.issue("server", extra=[extension])
        changed = change(
            sides,
            {"ca": b"", "check": PeerCheck((leaf.fingerprint,), ku=(0,))},
            {"certificate": leaf.cert_pem, "key": leaf.key_pem()},
        )
        assert client_fails(changed, pki.now) in {
            "bad-certificate",
            "wrong-usage",
        }


def test_a_client_always_wants_a_certificate(pki, sides):
    for verify in ("optional", "none"):
        client = start(change(sides, {"verify": verify})[0], pki.now)
        mode = client._connection.get_verify_mode()
        assert mode == SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT


def test_no_secret_is_in_the_repr(sides, client):
    assert repr(client.key_pem())[2:-1] not in repr(sides[0])
    text = repr(replace(sides[0], passphrase=b"hunter2", pkcs12=b"p12-bytes"))
    assert "hunter2" not in text
    assert "p12-bytes" not in text
