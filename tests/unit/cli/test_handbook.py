"""Handbook and README: every command in them is one, and every code has its place.

dom0's commands run in their order against the fake dom0; commands of a qube
are read by the real parser.
"""

import re
import shlex
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(TOP / "tests/dom0"))
import dom0  # noqa: E402

from qubes_vpn.cli.admin import make_parser  # noqa: E402
from qubes_vpn.cli.main import _parser  # noqa: E402

TEXT = (TOP / "docs/handbook.md").read_text()
COMMANDS = re.findall(r"^ *\[([\w-]+)\]\$ (.+)$", TEXT, re.MULTILINE)
README = [
    ("dom0" if line.startswith("qvm-vpn") else "sys-vpn", line)
    for line in re.findall(
        r"^    ((?:qvm|qubes)-vpn .+)$",
        (TOP / "README.md").read_text(),
        re.MULTILINE,
    )
]
# Qubes' and the distributions' own
OTHERS = {
    *("qvm-clone", "qvm-run", "qvm-shutdown", "qvm-prefs", "qvm-features"),
    *("qvm-create", "qvm-tags", "qubes-dom0-update", "qubesctl", "dnf"),
    *("qvm-copy", "rpm/build.sh", "dpkg-buildpackage", "ip"),
}
# they wait for events or for a disposable; they have tests of their own
NOT_RUN = ("watch", "leaktest", "--help")


def words_of(line):
    words = shlex.split(line)
    return words[1:] if words[0] == "sudo" else words


def test_there_are_commands():
    assert len(COMMANDS) > 40
    assert len(README) > 8


@pytest.mark.parametrize(("qube", "line"), COMMANDS + README)
def test_each_command_can_be_typed(qube, line):
    program, *words = words_of(line)
    parser = {
        "qvm-vpn": make_parser,
        "qubes-vpn": lambda: _parser(words),
    }.get(program)
    if parser is None:
        assert program in OTHERS
        return
    if "--help" in words:
        with pytest.raises(SystemExit, match="0"):
            parser().parse_args(words)
    else:
        parser().parse_args(words)
    assert (program == "qvm-vpn") == (qube == "dom0")


@pytest.fixture
def host(tmp_path, monkeypatch, capsys):
    """The host of chapter 1, after its templates were made."""
    model = dom0.standard_model()
    model.add(
        "fedora-43-vpn", klass="TemplateVM", features=dict(dom0.SUPPORTED)
    )
    model.add("vpn-dvm", template="fedora-43-vpn")
    model.vms["vpn-dvm"].values["template_for_dispvms"] = "True"
    model.add("sys-whonix", template="fedora-43")
    with dom0.running_host(model, tmp_path, monkeypatch, capsys) as host:
        for name in ("home", "berlin"):
            host.file("work", f"{name}.ovpn", "client\n")
        host.service("sys-vpn", "qubesvpn.Import", "cat >/dev/null")
        host.service("sys-vpn", "qubesvpn.Status", "echo connected")
        host.service(
            "sys-vpn", "qubesvpn.Endpoints", "echo 203.0.113.7 udp 1194"
        )
        yield host


@pytest.fixture
def policy(monkeypatch):
    import types

    files = {}

    class Client:
        policy_list = staticmethod(lambda: list(files))
        policy_get = staticmethod(lambda name: (files[name], "token"))
        policy_replace = staticmethod(files.__setitem__)
        policy_remove = staticmethod(files.__delitem__)

    module = types.ModuleType("qrexec.policy.admin_client")
    module.PolicyClient = Client
    for name in ("qrexec", "qrexec.policy"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_the_commands_of_dom0_work_in_their_order(host, policy):
    run = 0
    for qube, line in COMMANDS:
        program, *words = words_of(line)
        if (qube, program) != ("dom0", "qvm-vpn") or words[0] in NOT_RUN:
            continue
        if words[:2] == ["remove", "sys-vpn"]:
            # the chapters in between have put more qubes behind it
            host.run("unassign", "sys-vpn-2", "sys-whonix")
        status, output, errors = host.run(*words, "--yes")
        finds = words[0] == "audit"
        assert status in ((0, 1) if finds else (0,)), (
            f"{line}: {errors}{output}"
        )
        run += 1
    assert run > 15
    assert "sys-vpn" not in host.model.vms
    assert host.model.vms["work"].values["netvm"] == "sys-firewall"


def test_every_code_has_one_place():
    used = {
        code
        for path in (TOP / "qubes_vpn").rglob("*.py")
        for code in re.findall(r"QV-\d{3}", path.read_text())
    }
    anchors = re.findall(r'<a id="(qv-\d{3})"></a>', TEXT)
    assert len(anchors) == len(set(anchors))
    example = {"QV-017"}
    assert used - example == {anchor.upper() for anchor in anchors}


def test_every_code_has_a_sentence_and_a_next_step():
    entries = re.findall(
        r'<a id="(qv-\d{3})"></a>\n\*\*(QV-\d{3})\*\* .+[.?] \*.+\*$',
        TEXT,
        re.MULTILINE,
    )
    assert len(entries) == TEXT.count("<a id=")
    assert all(anchor.upper() == code for anchor, code in entries)
