"""A working profile, with keys and certificates made for the test."""

from datetime import UTC, datetime

import pytest

from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.config.server_profile import parse_server_profile
from qubes_vpn.crypto.pki import (
    Algorithm,
    Usage,
    issue,
    make_authority,
    make_crl,
)
from qubes_vpn.errors import ConfigError
from qubes_vpn.wire.keyfile import (
    TLS_CRYPT_V2_SERVER,
    ClientKeyV2,
    format_client_key_v2,
    format_pem,
    format_static_key,
)

NOW = datetime(2026, 11, 23, tzinfo=UTC)
DAYS = 3650


def _wkc():
    size = 32 + 256 + 2
    return bytes(size - 2) + size.to_bytes(2)


@pytest.fixture(scope="session")
def files():
    """File names to bytes: what read_file gives."""
    kind = Algorithm.P256
    authority = make_authority("Test CA", kind, NOW, DAYS)
    client, other = (
        issue(authority, name, Usage.CLIENT, kind, NOW, DAYS)
        for name in ("client", "other")
    )
    server = issue(authority, "server", Usage.SERVER, kind, NOW, DAYS)
    crl = make_crl(authority, [], 1, NOW, DAYS)
    static = format_static_key(bytes(range(256))).encode()
    v2 = format_client_key_v2(ClientKeyV2(bytes(256), _wkc()))
    return {
        "ca.crt": authority.certificate,
        "client.crt": client.certificate,
        "client.key": client.key,
        "other.key": other.key,
        "server.crt": server.certificate,
        "server.key": server.key,
        "ta.key": static,
        "v2.key": v2.encode(),
        "v2-server.key": format_pem(bytes(128), TLS_CRYPT_V2_SERVER).encode(),
        "crl.pem": crl,
        "x/crls/": b"17\n-4\nREADME\n1x\n",
        "auth": b"user\npass\n",
        "latin": b"us\xe9r\npass\n",
        "empty": b"",
        "junk": b"junk\n",
    }


@pytest.fixture
def read_file(files):
    def read(name):
        try:
            return files[name]
        except KeyError:
            raise FileNotFoundError(2, "No such file or directory") from None

    return read


BASE = """\
client
dev tun
remote 192.0.2.1
ca ca.crt
auth-user-pass auth
"""
SERVER = """\
dev tun
server 10.8.0.0 255.255.255.0
ca ca.crt
cert server.crt
key server.key
"""


@pytest.fixture
def parse(read_file):
    """Parse a whole client's profile."""
    return lambda text: parse_client_profile(text, "p.ovpn", read_file)


@pytest.fixture
def having(parse):
    """Parse the working profile with more lines at its end."""
    return lambda lines: parse(BASE + lines + "\n")


@pytest.fixture
def problems(read_file):
    """Give the problems of a client's profile, as text."""

    def give(text):
        with pytest.raises(ConfigError) as caught:
            parse_client_profile(text, "p.ovpn", read_file)
        return [str(one) for one in caught.value.problems]

    return give


@pytest.fixture
def wrong(problems):
    """Give the one problem that lines in a working profile make."""

    def give(lines):
        found = problems(BASE + lines + "\n")
        assert len(found) == 1, found
        return found[0].removeprefix("p.ovpn:")

    return give


@pytest.fixture
def serve(read_file):
    """Parse the working server's profile with more lines."""

    def give(lines, base=SERVER):
        return parse_server_profile(base + lines + "\n", "s.ovpn", read_file)

    return give


@pytest.fixture
def server_wrong(serve):
    def give(lines, base=SERVER):
        with pytest.raises(ConfigError) as caught:
            serve(lines, base)
        assert len(caught.value.problems) == 1, caught.value.problems
        return str(caught.value.problems[0]).removeprefix("s.ovpn:")

    return give
