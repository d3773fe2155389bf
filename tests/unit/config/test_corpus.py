"""Profiles of the real world: taken, or refused for the reason expected."""

from dataclasses import replace
from pathlib import Path

import pytest

from qubes_vpn.config.lexer import decode_text
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.config.server_profile import parse_server_profile
from qubes_vpn.config.write import write_profile
from qubes_vpn.errors import ConfigError

CORPUS = Path(__file__).parents[4] / "shared" / "corpus"

# Path below the corpus -> what the first problem says.
REFUSED = {
    "providers/btguard/default.ovpn": "ca: cannot read /etc/openvpn/",
    "providers/ghostpath/United-States-Denver.ovpn": "ca: cannot read /etc/",
    "providers/hotspotshield/default.ovpn": "unknown directive",
    "providers/ovpn/standard.sg.singapore.tcp.ovpn": "tls-auth and tls-crypt",
    "providers/safervpn/Sweden.ovpn": "ca: cannot read /etc/openvpn/",
    "providers/slickvpncore/Sweden-Halmstad.ovpn": "ca: cannot read /etc/",
    "providers/tiger/US New York.ovpn": "ca: cannot read /etc/openvpn/",
    "miragevpn/minimal-client.conf": "would accept any server",
    "miragevpn/static-office.conf": "names no server",
    "miragevpn/minimal-server.conf": "is for a server's profile",
    "miragevpn/server-tcp-certauth-passauth.conf": "is for a server's profile",
    "miragevpn/server.conf": "is for a server's profile",
    "miragevpn/tls-crypt-v2-server.conf": "is for a server's profile",
}
SERVERS = {name for name in REFUSED if "server" in name.rsplit("/", 1)[-1]}
PROFILES = sorted(
    str(path.relative_to(CORPUS))
    for suffix in ("ovpn", "conf")
    for path in CORPUS.rglob(f"*.{suffix}")
)


def arguments(name):
    path = CORPUS / name
    text = decode_text(path.read_bytes())
    return text, path.name, lambda other: (path.parent / other).read_bytes()


def no_files(name):
    raise FileNotFoundError(2, name)


def test_the_corpus_is_there():
    assert len(PROFILES) > 40, f"no profiles below {CORPUS}"
    assert set(PROFILES) >= set(REFUSED)


@pytest.mark.parametrize("name", PROFILES)
def test_a_profile_is_taken_or_refused_as_expected(name):
    if name not in REFUSED:
        assert parse_client_profile(*arguments(name)).remotes
        return
    with pytest.raises(ConfigError) as caught:
        parse_client_profile(*arguments(name))
    reason = REFUSED[name]
    assert any(reason in one.message for one in caught.value.problems)


@pytest.mark.parametrize("name", sorted(set(PROFILES) - set(REFUSED)))
def test_a_profile_is_written_back_to_its_equal(name):
    profile = parse_client_profile(*arguments(name))
    again = parse_client_profile(write_profile(profile), name, no_files)
    assert replace(again, notes=()) == replace(profile, notes=())


@pytest.mark.parametrize("name", sorted(SERVERS))
def test_a_server_s_profile_is_taken(name):
    assert parse_server_profile(*arguments(name)).network4


@pytest.mark.parametrize("name", PROFILES[::3])
@pytest.mark.parametrize("change", ["\r\n", "bom", "no-newline"])
def test_line_ends_change_nothing(name, change):
    text, title, read_file = arguments(name)
    plain = text.replace("\r\n", "\n")
    changed = {
        "\r\n": plain.replace("\n", "\r\n"),
        "bom": "\ufeff" + plain,
        "no-newline": plain.rstrip("\n"),
    }[change]

    def outcome(given):
        try:
            return parse_client_profile(given, title, read_file)
        except ConfigError as error:
            return [str(one) for one in error.problems]

    assert outcome(changed) == outcome(plain)
