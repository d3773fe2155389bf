"""Where openvpn 2.6 takes a client's profile, so do we; else we say why.

OpenVPN has no mode that only checks. With a management interface and its
hold, in an empty network namespace and with --dev null, it either reaches the
hold (it took the options) or exits (it refused them). It does not load TLS
keys and certificates before the hold: what is wrong with their content, only
we find here.
"""

import itertools
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from qubes_vpn.config.directives import _SHAPES, DIRECTIVES
from qubes_vpn.config.lexer import decode_text
from qubes_vpn.config.profile import parse_client_profile
from qubes_vpn.errors import ConfigError
from qubes_vpn.runtime.files import profile_reader

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
CORPUS = REPOSITORY.parent / "shared" / "corpus"
DOCUMENT = REPOSITORY / "docs" / "protocol.md"
CASES = HERE / "data" / "directive-cases.txt"
LIMIT = 20.0  # seconds; openvpn needs some hundredths

BASE = (
    "client\ndev tun\nremote 192.0.2.1 1194\nca ca.crt\nauth-user-pass auth\n"
)
# One word of every kind of argument.
SAMPLES = {
    "text": "1", "file": "auth", "host": "h.example", "port": "1194",
    "proto": "udp", "seconds": "20", "count": "20", "bytes": "20",
    "integer": "1", "mtu": "1400", "size": "1300", "bit": "1",
    "ipv4": "10.0.0.1", "netmask": "255.255.255.0",
    "ipv6": "fd00::1", "ipv6/bits": "fd00::2/64", "ipv6net": "fd00::/64",
    "target": "10.0.0.0", "gateway": "10.0.0.1", "domain": "x.example",
    "hash": ":".join(["AA"] * 32), "ku": "a0", "window": "64",
    "window-time": "15", "redirect": "def1", "mtu|fixed": "mtu",
    "dhcp|ipv4": "10.0.0.1",
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Why the two differ: which case, and what the one that refuses says.

    name: of its paragraph in docs/protocol.md.
    """

    name: str
    case: str
    says: str


def directive(*names):
    return rf"(?m)^({'|'.join(names)})\b"


WE_TAKE = (
    Difference("scripts", directive("up", "down", "route-up", "route-pre-down", "ipchange", "plugin", "tls-export-cert", "keying-material-exporter", "x509-track"), "."),
    Difference("passwords", directive("auth-user-pass"), "auth-user-pass fails"),
    Difference("files", directive("chroot", "status", "writepid", "tmp-dir", "log"), "fails with"),
    Difference("newer", directive("local", "multihome", "route-table", "dns-updown", "allow-deprecated-insecure-static-crypto", "use-prediction-resistance", "static-challenge", "push-continuation", "force-tls-key-material-export", "data-ciphers DEFAULT"), "."),
    Difference("removed", directive("ncp-disable", "keysize", "no-iv", "key-method", "management-client-pf", "http-proxy-timeout"), "Unrecognized option"),
    Difference("systems", directive("windows-driver", "win-sys", "ip-win32", "msg-channel", "tap-sleep", "dhcp-renew", "dhcp-release", "dhcp-pre-release", "dhcp-internal", "rdns-internal", "register-dns", "block-outside-dns", "service", "pause-exit", "allow-nonadmin", "show-net-up", "setcon", "iproute", "memstats"), "."),
    Difference("unused", directive("http-proxy-user-pass", "http-proxy-option", "socket-flags", "mtu-disc", "lladdr", "shaper", "providers", "opt-verify", "remap-usr1", "verify-client-cert", "status-version", "management-client", "management-client-user", "management-client-group", "dhcp-option", "setenv", "setenv-safe", "auth-token", "auth-token-user", "peer-id", "key-derivation", "protocol-flags"), "."),
    Difference("inline", directive("socks-proxy-user-pass", "askpass"), "."),
    Difference("ciphers", directive("data-ciphers", "compat-mode"), "data-ciphers list"),
    Difference("compression", directive("allow-compression", "comp-lzo"), "(?i)compression"),
    Difference("order", directive("foo", "nonsense"), "Unrecognized option"),
    Difference("case", directive("proto TCP"), "Bad protocol"),
    Difference("dns", directive("dns server"), "."),
)  # fmt: skip
WE_REFUSE = (
    Difference("numbers", ".", "needs a (whole number|port|number or|netmask)|needs hexadecimal|needs an IPv6 network"),
    Difference("names", directive("remote"), "needs a host name"),
    Difference("content", ".", "holds nothing whole|is empty|no OpenVPN|is not a PKCS#12|unknown digest|unknown method|needs one of|is not the address of a resolver"),
    Difference("tap", ".", r"tap \(layer 2\)"),
    Difference("tokens", directive("pkcs11-"), "keys on a token"),
    Difference("undone", directive("capath", "tls-verify", "client-nat", "lport", "proto tcp-server", "proto tcp"), "refused|is for a server|write ntlm2"),
    Difference("proxies", directive("socks-proxy"), "cannot read missing"),
    Difference("nobody", directive("proto-force"), "no server is reached"),
    Difference("backslash", "", "a backslash must be doubled"),
    Difference("block", directive("connection"), "is a block"),
    Difference("clear", "(?m)^dev tun\nremote", "secret needs ifconfig|the line .client. is missing"),
)  # fmt: skip
DIFFERENCES = WE_TAKE + WE_REFUSE
NAMES = [one.name for one in DIFFERENCES]


@dataclass(frozen=True)
class Verdict:
    """Whether a program takes a profile, and what it says if not."""

    taken: bool
    says: str = ""


def theirs(path):
    """Ask openvpn."""
    # a socket's path has 107 bytes at the most: not in the test's own folder
    with tempfile.TemporaryDirectory(prefix="hold") as folder:
        return held(path, Path(folder) / "hold")


def held(path, socket):
    """Whether openvpn comes as far as to the hold on its socket."""
    command = [
        "unshare", "--net", "openvpn", "--cd", str(path.parent),
        "--config", str(path), "--dev", "null", "--management", str(socket),
        "unix", "--management-hold", "--management-query-passwords",
    ]  # fmt: skip
    with path.with_suffix(".out").open("w+b") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        try:
            until = time.monotonic() + LIMIT
            while process.poll() is None and not socket.exists():
                assert time.monotonic() < until, (
                    "openvpn neither holds nor ends"
                )
                time.sleep(0.003)
            taken = process.poll() is None
        finally:
            process.kill()
            process.wait()
        out.seek(0)
        return Verdict(taken, out.read().decode("utf-8", "replace"))


def ours(path):
    """Ask qubes_vpn."""
    try:
        parse_client_profile(
            decode_text(path.read_bytes()),
            path.name,
            profile_reader(str(path)),
        )
    except ConfigError as error:
        return Verdict(taken=False, says=str(error))
    return Verdict(taken=True)


def explanation(case, them, us):
    """Give the Difference that explains it; None: there is none."""
    for one in WE_TAKE if us.taken else WE_REFUSE:
        said = them.says if us.taken else us.says
        if re.search(one.case, case) and re.search(one.says, said):
            return one
    return None


def compare(path, case):
    """Return the name of the difference, or None; a text for a new one."""
    them, us = theirs(path), ours(path)
    if them.taken == us.taken:
        return None
    found = explanation(case, them, us)
    return found.name if found else f"{case!r}: {them}, {us}"


@pytest.fixture
def folder(tmp_path):
    """A folder with the files that the cases name."""
    for path in (CORPUS / "miragevpn").iterdir():
        if path.suffix in {".crt", ".key"} or path.name == "auth":
            shutil.copyfile(path, tmp_path / path.name)
            (tmp_path / path.name).chmod(0o600)
    (tmp_path / "empty").write_text("")
    return tmp_path


def compare_all(folder, cases):
    met = set()
    for case in cases:
        path = folder / "p.ovpn"
        text = case[1:] if case.startswith("!") else BASE + case
        path.write_text(text + "\n")
        met.add(compare(path, case.removeprefix("!")))
    unexplained = met - {None, *NAMES}
    assert not unexplained
    return met


def generated(counts):
    """Every directive, with some numbers of arguments."""
    for name in DIRECTIVES:
        if name == "daemon":  # it would outlive the test
            continue
        shape = _SHAPES[name]
        for count in sorted(counts(shape)):
            words = [
                SAMPLES[shape.kinds[min(at, len(shape.kinds) - 1)]]
                if shape.kinds
                else "1"
                for at in range(count)
            ]
            yield " ".join([name, *words])


def written():
    return CASES.read_text().split("\n---\n")[1:]


@pytest.mark.parametrize(
    "path",
    sorted(p for s in ("ovpn", "conf") for p in CORPUS.rglob(f"*.{s}")),
    ids=lambda path: path.name,
)
def test_the_corpus(path, tmp_path):
    # Beside its files, but with the sockets and output elsewhere.
    folder = tmp_path / "corpus"
    shutil.copytree(path.parent, folder)
    for one in folder.iterdir():
        one.chmod(0o600)
    copy = folder / path.name
    known = {None, *NAMES}
    assert compare(copy, decode_text(copy.read_bytes())) in known


def test_cases(folder):
    assert compare_all(folder, written()) >= {None, "numbers", "order"}


def test_every_directive(folder):
    """With the fewest arguments; a third of the table, another each day."""
    cases = list(generated(lambda shape: {shape.least}))
    part = int(time.time() // 86_400) % 3
    assert None in compare_all(folder, cases[part::3])


@pytest.mark.long
def test_every_directive_with_every_number_of_arguments(folder):
    def counts(shape):
        most = len(shape.kinds)
        return {max(shape.least - 1, 0), shape.least, most, most + 1}

    compare_all(folder, generated(counts))


@pytest.mark.long
def test_every_difference_is_met(folder):
    def counts(shape):
        return {shape.least, len(shape.kinds)}

    cases = itertools.chain(written(), generated(counts))
    met = compare_all(folder, cases)
    assert met >= set(NAMES)


def test_every_difference_is_explained():
    text = DOCUMENT.read_text()
    for one in DIFFERENCES:
        assert f"- **{one.name}**:" in text, one.name


def test_the_harness_can_tell(tmp_path):
    """Both see a wrong profile, and a difference without reason fails."""
    path = tmp_path / "p.ovpn"
    path.write_text("client\nnonsense")
    assert not theirs(path).taken
    assert "nonsense" in theirs(path).says
    with pytest.raises(AssertionError):
        assert explanation("verb 3", Verdict(True), Verdict(False, "x"))
