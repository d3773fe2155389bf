"""A certificate authority for tests: EC keys, any extension, any time."""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

NOW = 1_800_000_000
DAY = datetime.timedelta(days=1)
WHEN = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
EKU = {
    "server": ExtendedKeyUsageOID.SERVER_AUTH,
    "client": ExtendedKeyUsageOID.CLIENT_AUTH,
}
PEM = serialization.Encoding.PEM


def as_name(name):
    if isinstance(name, x509.Name):
        return name
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def key_usage(**true):
    names = (
        "digital_signature content_commitment key_encipherment"
        " data_encipherment key_agreement key_cert_sign crl_sign"
        " encipher_only decipher_only"
    )
    return x509.KeyUsage(**{n: n in true for n in names.split()})


class Issued:
    """A certificate and its key."""

    def __init__(self, certificate, key):
        self.certificate, self.key = certificate, key
        self.cert_pem = certificate.public_bytes(PEM)
        self.fingerprint = certificate.fingerprint(hashes.SHA256())

    def key_pem(self, passphrase=None):
        protection = (
            serialization.BestAvailableEncryption(passphrase)
            if passphrase
            else serialization.NoEncryption()
        )
        return self.key.private_bytes(
            PEM, serialization.PrivateFormat.PKCS8, protection
        )


class Pki:
    """Issues certificates; `ca` is the root that most tests trust."""

    now = NOW

    def __init__(self):
        self.ca = self.issue("Test CA", issuer=None, is_ca=True)

    def issue(
        self,
        name="peer",
        *,
        issuer="ca",
        is_ca=False,
        usage=None,
        ku=None,
        start=-DAY,
        end=DAY,
        extra=(),
        key=None,
    ):
        key = key or ec.generate_private_key(ec.SECP256R1())
        if issuer == "ca":
            issuer = self.ca
        subject = as_name(name)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer.certificate.subject if issuer else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(WHEN + start)
            .not_valid_after(WHEN + end)
            .add_extension(x509.BasicConstraints(is_ca, None), True)
        )
        if usage:
            eku = x509.ExtendedKeyUsage([EKU.get(usage, usage)])
            builder = builder.add_extension(eku, False)
        if ku:
            builder = builder.add_extension(key_usage(**ku), True)
        for extension in extra:
            builder = builder.add_extension(extension, False)
        signer = issuer.key if issuer else key
        return Issued(builder.sign(signer, hashes.SHA256()), key)

    def crl(self, revoked=(), *, issuer=None, start=-DAY, end=DAY):
        issuer = issuer or self.ca
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.certificate.subject)
            .last_update(WHEN + start)
            .next_update(WHEN + end)
        )
        for issued in revoked:
            entry = (
                x509.RevokedCertificateBuilder()
                .serial_number(issued.certificate.serial_number)
                .revocation_date(WHEN - DAY)
                .build()
            )
            builder = builder.add_revoked_certificate(entry)
        return builder.sign(issuer.key, hashes.SHA256()).public_bytes(PEM)


@pytest.fixture(scope="session")
def pki():
    return Pki()


@pytest.fixture(scope="session")
def server(pki):
    return pki.issue("server", usage="server", ku={"digital_signature": True})


@pytest.fixture(scope="session")
def client(pki):
    return pki.issue("client", usage="client", ku={"digital_signature": True})
