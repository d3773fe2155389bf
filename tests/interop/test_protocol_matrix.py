"""Every control wrap, transport and data cipher against openvpn 2.6.

Pairwise in `make test`: every two values of different axes meet once. The
whole product in `make test-long`. Each cell: connect, traffic both ways, one
new key under traffic, all locking layers on, nothing leaked. The run prints
its table (tests/interop/matrix.py).
"""

import itertools

import pytest

from lab import addresses as at
from lab.appliance import Appliance
from lab.openvpn import Wrap
from lab.traffic import Flood, download

WRAPS = ("plain", "tls-auth", "tls-crypt", "tls-crypt-v2", "v2-cookie")
TRANSPORTS = ("udp4", "udp6", "tcp4", "tcp6")
CIPHERS = (
    "AES-128-GCM",
    "AES-192-GCM",
    "AES-256-GCM",
    "CHACHA20-POLY1305",
    "AES-256-CBC",
)
# of servers that are old; in the whole product alone
OLD_CIPHERS = ("AES-128-CBC", "AES-192-CBC")
BULK = 100_000


def pairwise():
    """Rows of a Latin square: all pairs of wrap, transport and cipher."""
    for i, j in itertools.product(range(len(WRAPS)), range(len(CIPHERS))):
        yield WRAPS[i], TRANSPORTS[(i + j) % len(TRANSPORTS)], CIPHERS[j]
    # 5 x 5 rows over 4 transports leave these pairs out
    yield "plain", "tcp6", "AES-128-GCM"


PAIRS = sorted(set(pairwise()))
ALL = itertools.product(WRAPS, TRANSPORTS, CIPHERS + OLD_CIPHERS)
REST = sorted(set(ALL) - set(PAIRS))


def test_the_pairs_are_all_there():
    for a, b in ((0, 1), (0, 2), (1, 2)):
        axes = (WRAPS, TRANSPORTS, CIPHERS)
        met = {(row[a], row[b]) for row in PAIRS}
        assert met == set(itertools.product(axes[a], axes[b])), (a, b)


def fields(wrap, transport, cipher):
    version = transport[3:]
    kind = "tls-crypt-v2" if wrap == "v2-cookie" else wrap
    return {
        "wrap": Wrap(kind),
        "proto": transport[:3],
        "address": at.SERVER4 if version == "4" else at.SERVER6,
        "cipher": cipher,
        "force_cookie": wrap == "v2-cookie",
    }


def play(lab, start_server, wrap, transport, cipher):
    server = start_server(**fields(wrap, transport, cipher))
    appliance = Appliance(lab).lock()
    profile = server.client_profile() + "reneg-sec 3\n"
    uplink6 = f"{at.VPN.ip6},{at.NET.ip6}"
    with lab.capture(server.settings.endpoint) as capture, appliance:
        appliance.connect(profile, "--uplink6", uplink6).wait_connected()
        with Flood(lab.app(1), rate=50) as flood:
            flood.wait_echoes(10)
            server.wait_rekeyed()
            assert download(lab.app(2), BULK) == BULK
            flood.wait_echoes(20)
        status = appliance.status()
        report = capture.report()
    assert set(server.ciphers()) == {cipher}
    assert status["cipher"] == cipher
    assert status["remote"]["proto"] == transport[:3]
    assert not report.leaks, str(report)


@pytest.mark.parametrize(("wrap", "transport", "cipher"), PAIRS)
def test_pair(lab6, start_server, wrap, transport, cipher):
    play(lab6, start_server, wrap, transport, cipher)


@pytest.mark.long
@pytest.mark.parametrize(("wrap", "transport", "cipher"), REST)
def test_rest(lab6, start_server, wrap, transport, cipher):
    play(lab6, start_server, wrap, transport, cipher)
