"""Any QubesDB value and any qrexec call is read, or refused in one line."""

import contextlib
import io
import json

from qubes_vpn.cli.parse_apart import verdict
from qubes_vpn.cli.rpc import _read
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.errors import UnavailableError, UsageError
from qubes_vpn.qubes.agent import (
    dns_directives,
    markup,
    printable,
    resolv_conf,
    web_login_url,
)
from qubes_vpn.qubes.profiles import PROFILE_MAX, checked_name
from qubes_vpn.qubes.qubesdb import Database

FINGERPRINT = ":".join(["0A"] * 32)
SEEDS = (
    b"qhome, work",
    b"q9.9.9.9",
    b"qfd09:24ef:4179::a89:7",
    b"qpassthrough",
    f"iclient\nremote 192.0.2.1\npeer-fingerprint {FINGERPRINT}\n".encode(),
    b"iclient\nremote h\n<ca>\nx\n</ca>\nup /bin/sh\n",
    b"nwork.2",
    b"n../../etc",
    b"uhttps://login.example.com/a?b=c",
    b"uhttps://a.b@c/\nx",
)


class Connection:
    """Gives the same for every path."""

    def __init__(self, value):
        self.read = lambda path: value


class World:
    """Has a standard input."""

    def __init__(self, data):
        self.stdin = io.TextIOWrapper(io.BytesIO(data))


def one_input(data: bytes) -> None:
    """Do what the first byte says."""
    kind, rest = data[:1], data[1:]
    if kind == b"q":
        read_database(rest)
    elif kind == b"n":
        name = rest.decode("utf-8", "replace")
        try:
            assert "/" not in checked_name(name)
            assert not name.startswith(".")
        except ValueError:
            pass
    elif kind == b"u":
        url = rest.decode("utf-8", "replace")
        try:
            assert web_login_url(url).startswith("https://")
            assert url.isascii()
            assert url.isprintable()
            assert not set(url) & set(" '\"`$;|<>\\()@#")
        except ValueError:
            pass
    else:
        import_profile(rest)


def read_database(value: bytes) -> None:
    """Ask for everything; what comes out is what files are made of."""
    database = Database(Connection(value))
    assert all(map(checked_name, database.profiles()))
    with contextlib.suppress(UsageError):
        choice = database.dns()
        if choice.address:
            assert dns_directives(choice.address).count("\n") == 5
            assert resolv_conf([choice.address], []).count("\n") == 2
    database.resolver(), database.uplink6(), database.clients()
    database.service_on(), database.is_net_vm()
    text = value.decode("utf-8", "replace")
    assert resolv_conf([], [text]).count("\n") <= 2
    assert printable(text).isprintable()
    assert "<" not in markup(text)


def import_profile(data: bytes) -> None:
    """Import as qubesvpn.Import does."""
    try:
        text = _read(World(data), PROFILE_MAX)
    except UnavailableError:
        return
    said = verdict(text)
    json.dumps(said)
    if said["ok"]:
        parse_client_profile(said["text"], "again", no_file)
    else:
        assert said["problems"]
        assert all(line.isprintable() for line in said["problems"])


def no_file(path):
    """Refuse: what was stored names no file."""
    raise AssertionError(path)
