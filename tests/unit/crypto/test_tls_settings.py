"""Settings that cannot be used: each is a problem of one directive."""

import base64
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.hazmat.primitives.serialization import pkcs12

from qubes_vpn.crypto import tls_errors
from qubes_vpn.crypto.identity import is_encrypted, load_pkcs12
from qubes_vpn.crypto.tls import TlsContext, TlsSettings
from qubes_vpn.crypto.tls_names import cipher_list, openssl_cipher
from qubes_vpn.crypto.verify import PeerCheck
from qubes_vpn.errors import ConfigError

BEGIN = "-----BEGIN CERTIFICATE-----"
GARBAGE = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


@pytest.fixture
def good(pki, client):
    return TlsSettings(
        ca=pki.ca.cert_pem,
        certificate=client.cert_pem,
        key=client.key_pem(),
    )


def refused(settings):
    """Return the directive and the sentence of the refusal."""
    with pytest.raises(ConfigError) as caught:
        TlsContext(settings)
    (problem,) = caught.value.problems
    return problem.file, problem.message


@pytest.mark.parametrize("verify", ["require", "optional"])
def test_a_context_that_trusts_anybody_cannot_be_made(good, verify):
    without = replace(good, ca=b"")
    assert refused(without)[0] == "ca"
    assert refused(replace(without, is_server=True, verify=verify))[0] == "ca"
    assert refused(replace(without, verify="none"))[0] == "ca"
    check = PeerCheck(name="server", name_type="name", eku="x", ku=(0,))
    assert refused(replace(without, check=check))[0] == "ca"


@pytest.mark.parametrize(
    ("changes", "directive", "part"),
    [
        ({"ca": b"text"}, "ca", "no PEM certificate"),
        ({"ca": GARBAGE}, "ca", "damaged"),
        ({"certificate": b""}, "cert", "no certificate"),
        ({"certificate": b"text"}, "cert", "no PEM certificate"),
        ({"certificate": GARBAGE}, "cert", "damaged"),
        ({"chain": GARBAGE}, "extra-certs", "damaged"),
        ({"key": b""}, "key", "no key"),
        ({"key": b"text"}, "key", "not a PEM private key"),
        ({"pkcs12": b"text"}, "pkcs12", "passphrase"),
        ({"pkcs12": b"text", "passphrase": b"x"}, "pkcs12", "wrong"),
        ({"crl": b"text"}, "crl-verify", "no PEM"),
        ({"version_min": "1.4"}, "tls-version-min", "no TLS 1.4"),
        ({"version_max": "2"}, "tls-version-max", "no TLS 2"),
        ({"version_max": "1.1"}, "tls-version-max", "below TLS 1.2"),
        (
            {"version_min": "1.3", "version_max": "1.2"},
            "tls-version-max",
            "below TLS 1.3",
        ),
        ({"cipher": "NO-SUCH"}, "tls-cipher", "no known cipher"),
        ({"cipher": "aNULL"}, "tls-cipher", "no known cipher"),
        ({"ciphersuites": "TLS_NO_SUCH"}, "tls-ciphersuites", "no TLS 1.3"),
        ({"groups": "brainpoolP256r1:x"}, "tls-groups", "none of them"),
        ({"cert_profile": "x"}, "tls-cert-profile", "no certificate profile"),
        (
            {"is_server": True, "certificate": b"", "key": b""},
            "cert",
            "a server needs",
        ),
    ],
)
def test_settings_that_cannot_be_used(good, changes, directive, part):
    name, message = refused(replace(good, **changes))
    assert name == directive
    assert part in message


def test_a_damaged_list_is_refused(pki, good):
    damaged = pki.crl().replace(b"M", b"N", 1)
    assert refused(replace(good, crl=damaged))[0] == "crl-verify"


def test_a_key_of_another_certificate_is_refused(good, server):
    directive, message = refused(replace(good, key=server.key_pem()))
    assert directive == "key"
    assert "`cert`" in message


def test_a_certificate_with_an_unknown_curve_has_no_key(pki, good):
    # secp256r1's identifier becomes one that nobody has.
    der = pki.issue("client").certificate.public_bytes(
        serialization.Encoding.DER
    )
    curve = bytes.fromhex("06082a8648ce3d030107")
    changed = der.replace(curve, curve[:-1] + b"\x7f")
    text = base64.encodebytes(changed).decode()
    pem = f"{BEGIN}\n{text}{BEGIN.replace('BEGIN', 'END')}\n".encode()
    assert refused(replace(good, certificate=pem))[0] == "key"


def test_a_minimum_below_1_2_is_raised(good):
    TlsContext(replace(good, version_min="1.0"))
    TlsContext(replace(good, version_min=""))


@pytest.mark.parametrize(
    "profile", ["insecure", "legacy", "preferred", "suiteb"]
)
def test_certificate_profiles(good, profile):
    TlsContext(replace(good, cert_profile=profile))


def test_encrypted_keys_need_their_passphrase(good, client):
    secret = client.key_pem(b"secret")
    assert is_encrypted(secret)
    assert not is_encrypted(client.key_pem())
    assert not is_encrypted(b"text")
    encrypted = replace(good, key=secret)
    TlsContext(replace(encrypted, passphrase=b"secret"))
    assert "askpass" in refused(encrypted)[1]
    assert "wrong" in refused(replace(encrypted, passphrase=b"x"))[1]
    # A passphrase that is not needed does no harm.
    TlsContext(replace(good, passphrase=b"secret"))


@pytest.mark.parametrize("kind", [x25519.X25519PrivateKey])
def test_keys_that_tls_cannot_use_are_refused(good, kind):
    pem = kind.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    assert refused(replace(good, key=pem)) == (
        "key",
        "this kind of private key cannot be used in TLS",
    )


def test_other_kinds_of_keys(pki, good):
    for key in (
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
    ):
        issued = pki.issue("client", key=key)
        algorithm = replace(
            good, certificate=issued.cert_pem, key=issued.key_pem()
        )
        TlsContext(algorithm)


def bundle(issued, others=(), passphrase=b"secret", key=True, cert=True):
    return pkcs12.serialize_key_and_certificates(
        b"name",
        issued.key if key else None,
        issued.certificate if cert else None,
        [other.certificate for other in others] or None,
        serialization.BestAvailableEncryption(passphrase)
        if passphrase
        else serialization.NoEncryption(),
    )


def test_a_pkcs12_file_is_an_identity_and_an_authority(pki, client):
    content = bundle(client, [pki.ca])
    settings = TlsSettings(pkcs12=content, passphrase=b"secret")
    TlsContext(settings)
    loaded = load_pkcs12(content, b"secret")
    assert loaded.certificate == client.certificate
    assert loaded.chain == (pki.ca.certificate,)
    assert "key=" not in repr(loaded)
    # With a ca of its own, the others are sent as the chain.
    TlsContext(replace(settings, ca=pki.ca.cert_pem))


def test_pkcs12_files_that_are_not_enough(pki, client):
    alone = TlsSettings(pkcs12=bundle(client), passphrase=b"secret")
    assert refused(alone)[0] == "ca"
    for options in ({"key": False}, {"cert": False}):
        content = bundle(client, [pki.ca], **options)
        settings = TlsSettings(pkcs12=content, passphrase=b"secret")
        assert refused(settings)[0] == "pkcs12"
    plain = bundle(client, [pki.ca], passphrase=None)
    TlsContext(TlsSettings(pkcs12=plain))
    locked = TlsSettings(pkcs12=bundle(client, [pki.ca]))
    assert "passphrase" in refused(locked)[1]


@pytest.mark.parametrize(
    ("iana", "openssl"),
    [
        # OpenVPN 2 ssl_mbedtls.c and ssl.c, tls_cipher_name_pairs
        (
            "TLS-ECDHE-RSA-WITH-AES-256-GCM-SHA384",
            "ECDHE-RSA-AES256-GCM-SHA384",
        ),
        (
            "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            "ECDHE-RSA-AES128-GCM-SHA256",
        ),
        ("TLS-DHE-RSA-WITH-AES-256-CBC-SHA", "DHE-RSA-AES256-SHA"),
        ("TLS-DHE-RSA-WITH-AES-256-CBC-SHA256", "DHE-RSA-AES256-SHA256"),
        ("TLS-RSA-WITH-AES-128-CBC-SHA", "AES128-SHA"),
        ("TLS-RSA-WITH-3DES-EDE-CBC-SHA", "DES-CBC3-SHA"),
        ("TLS-DHE-RSA-WITH-CAMELLIA-256-CBC-SHA", "DHE-RSA-CAMELLIA256-SHA"),
        (
            "TLS-ECDHE-ECDSA-WITH-CHACHA20-POLY1305-SHA256",
            "ECDHE-ECDSA-CHACHA20-POLY1305",
        ),
        ("TLS-ECDHE-ECDSA-WITH-AES-128-CCM-8", "ECDHE-ECDSA-AES128-CCM8"),
        ("TLS-ECDHE-ECDSA-WITH-AES-128-CCM", "ECDHE-ECDSA-AES128-CCM"),
        ("TLS-DH-anon-WITH-AES-128-CBC-SHA", "ADH-AES128-SHA"),
        ("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES256-GCM-SHA384"),
        ("DEFAULT", "DEFAULT"),
        ("!TLS-RSA-WITH-NULL-MD5", "!TLS-RSA-WITH-NULL-MD5"),
        ("TLS-FALLBACK-SCSV", "TLS-FALLBACK-SCSV"),
        ("TLS-RSA-WITH-NULL-MD5", "NULL-MD5"),
    ],
)
def test_cipher_names_are_translated(iana, openssl):
    assert openssl_cipher(iana) == openssl


def test_nothing_without_authentication_is_ever_offered():
    assert cipher_list("ALL:", "legacy") == b"ALL:!aNULL:!eNULL:@SECLEVEL=1"
    assert cipher_list("", "suiteb") == b"SUITEB128:@SECLEVEL=3"
    assert b"SECLEVEL=0" in cipher_list("", "insecure")


def test_errors_of_openssl_that_are_not_in_our_tables():
    error = tls_errors.verify_error(999, 1)
    assert error.reason == "verify-failed"
    assert "999" in error.detail
    unknown = tls_errors.tls_error(tls_errors.SSL.Error([("", "", "odd")]))
    assert (unknown.reason, unknown.detail) == ("tls-error", "odd")
    assert tls_errors.tls_error(tls_errors.SSL.Error()).reason == "tls-error"
