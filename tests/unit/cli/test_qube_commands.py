"""The commands of a qube that need no tunnel: import, adopt, report..."""

import io
import json
import os
import re
import selectors
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qubes_vpn.cli import parse_apart, rpc
from qubes_vpn.cli.main import main
from qubes_vpn.keeper.forwarding import NOTE
from qubes_vpn.qubes import checks
from qubes_vpn.qubes.foreign import disable, find
from qubes_vpn.qubes.profiles import Profiles
from qubes_vpn.runtime.control import ControlServer

FINGERPRINT = ":".join(["AA"] * 32)
PROFILE = (
    "client\ndev tun\nauth-user-pass\nremote 192.0.2.1 1194 udp\n"
    f"peer-fingerprint {FINGERPRINT}\n"
)


class Stdin(io.StringIO):
    """Text with the bytes below it, as a pipe has."""

    def __init__(self, data):
        data = data.encode() if isinstance(data, str) else data
        super().__init__(data.decode("utf-8", "replace"))
        self.buffer = io.BytesIO(data)


@pytest.fixture
def call(monkeypatch, capsys):
    """call(words, stdin) -> (status, output, errors) of qubes-vpn."""

    def run(*words, stdin=""):
        monkeypatch.setattr(sys, "stdin", Stdin(stdin))
        status = main([str(word) for word in words])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def agent(tmp_path):
    """A control socket; what was asked, and what it answers."""
    selector = selectors.DefaultSelector()
    asked, answers = [], {}

    def handle(verb, request):
        asked.append((verb, request))
        return answers.get(verb, {"ok": True})

    path = str(tmp_path / "run" / "control.sock")
    server = ControlServer(path, selector, handle)
    ended = threading.Event()

    def loop():
        while not ended.is_set():
            for key, _ in selector.select(0.02):
                key.data()

    thread = threading.Thread(target=loop)
    thread.start()
    yield type("Agent", (), {"path": path, "asked": asked, "answers": answers})
    ended.set()
    thread.join()
    server.close()
    selector.close()


# --- import ------------------------------------------------------------------


def folder_of(tmp_path):
    return tmp_path / "config"


def send(call, agent, tmp_path, profile, name="home"):
    return call(
        *("rpc", "Import", "--control", agent.path),
        *("--folder", folder_of(tmp_path), f"--argument={name}"),
        stdin=profile,
    )


def test_an_import_is_stored_and_the_agent_told(call, agent, tmp_path):
    assert send(call, agent, tmp_path, PROFILE) == (0, "", "")
    profiles = Profiles(folder_of(tmp_path), owner=os.geteuid())
    text = profiles.path("home").read_text()
    assert "192.0.2.1" in text
    assert [verb for verb, _ in agent.asked] == ["reload"]


def test_nothing_of_the_senders_text_is_kept(call, agent, tmp_path):
    send(call, agent, tmp_path, PROFILE + "# a comment with \x1b[2J\n")
    profiles = Profiles(folder_of(tmp_path), owner=os.geteuid())
    assert "comment" not in profiles.path("home").read_text()


@pytest.mark.parametrize(
    ("profile", "words"),
    [
        (PROFILE + "ca /etc/shadow\n", "stays where it is"),
        (PROFILE + "no-such-directive\n", "no-such-directive"),
        ("", "empty"),
        (b"\x00\x01\x02", "1"),
    ],
)
def test_what_cannot_be_used_is_said_and_not_stored(
    call, agent, tmp_path, profile, words
):
    status, _, errors = send(call, agent, tmp_path, profile)
    assert status == 78
    assert words in errors
    assert Profiles(folder_of(tmp_path)).names() == ()
    assert agent.asked == []


def test_a_profile_that_is_too_large_is_refused(call, agent, tmp_path):
    status, _, errors = send(call, agent, tmp_path, "#" * (256 * 1024 + 1))
    assert status == 69
    assert "262144 bytes" in errors


def test_a_profile_that_is_no_text_is_refused(call, agent, tmp_path):
    status, _, errors = send(call, agent, tmp_path, b"\xff\xfe\x00")
    assert status == 69
    assert "UTF-8" in errors


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 49])
def test_a_name_that_is_none_is_refused(call, agent, tmp_path, name):
    assert send(call, agent, tmp_path, PROFILE, name)[0] == 64


def test_errors_cannot_command_a_terminal(call, agent, tmp_path):
    _, output, errors = send(call, agent, tmp_path, PROFILE + "\x1b[2Jx 1\n")
    assert "\x1b" not in output + errors


def in_child(code):
    """Run code where profiles are parsed: confined."""
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, socket\n"
            "from qubes_vpn.cli import parse_apart\n"
            "parse_apart.confine()\n"
            f"{code}",
        ],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="confining is root's to do")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(os.geteuid(), os.getgroups())", "65534 []"),
        ("open('/etc/passwd')", "Too many open files"),
        ("socket.socket()", "Too many open files"),
        ("os.fork()", "Resource temporarily unavailable"),
        # not left to a traceback, which needs memory too
        (
            "try: bytearray(600 * 1024 * 1024)\n"
            "except MemoryError: print('no memory')",
            "no memory",
        ),
        ("os.setuid(0)", "Operation not permitted"),
        ("print(parse_apart.verdict('x')['ok'])", "False"),
    ],
)
def test_the_parser_has_nothing(code, said):
    assert said in in_child(code)


def test_a_parser_that_dies_has_refused(monkeypatch):
    monkeypatch.setattr(rpc.sys, "executable", "/bin/false")
    verdict = rpc.parse_apart(PROFILE)
    assert not verdict["ok"]
    assert "could not be parsed" in verdict["problems"][0]


def test_a_profile_that_carries_little_says_so():
    text = PROFILE + "route-nopull\nroute 10.0.0.0 255.0.0.0\n"
    assert parse_apart.NOT_ALL in parse_apart.verdict(text)["notes"]


# --- the other services --------------------------------------------------------


def test_the_services_pass_fixed_verbs(call, agent):
    words = ("--control", agent.path)
    assert call("rpc", "Connect", *words)[0] == 0
    assert call("rpc", "Disconnect", *words)[0] == 0
    assert call("rpc", "Switch", *words, "--argument=work")[0] == 0
    assert call("rpc", "Answer", *words, stdin="maria\n1234\n")[0] == 0
    requests = [
        {k: v for k, v in request.items() if k != "v"}
        for _, request in agent.asked
    ]
    assert requests == [
        {"verb": "connect"},
        {"verb": "disconnect"},
        {"verb": "switch", "profile": "work"},
        {"verb": "answer", "username": "maria", "password": "1234"},
    ]


def test_a_refusal_reaches_the_caller(call, agent):
    agent.answers["switch"] = {"ok": False, "error": "no\x1b profile"}
    status, _, errors = call(
        "rpc", "Switch", "--control", agent.path, "--argument=x"
    )
    assert (status, errors) == (69, "no? profile\n")


@pytest.mark.parametrize(
    ("phase", "code", "word"),
    [
        ("connected", "", "connected"),
        ("connected", "QV-123", "connected"),
        ("blocked", "QV-330", "blocked QV-330"),
        ("connecting", "", "connecting"),
    ],
)
def test_the_word_for_dom0(call, agent, phase, code, word):
    from qubes_vpn.cli.admin import _STATUS

    agent.answers["status"] = {
        "ok": True,
        "phase": phase,
        "reason": {"code": code, "text": "any text"},
    }
    words = ("rpc", "Status", "--control", agent.path, "--argument=word")
    assert call(*words)[1] == f"{word}\n"
    assert _STATUS.fullmatch(f"{word}\n".encode())


def test_the_endpoints_for_dom0(call, agent):
    lines = ["203.0.113.7 udp 1194", "2001:db8::7 tcp 443"]
    agent.answers["endpoints"] = {"ok": True, "endpoints": lines}
    words = ("rpc", "Endpoints", "--control", agent.path, "--argument=refresh")
    assert call(*words)[1].splitlines() == lines
    assert agent.asked[-1][1]["refresh"] is True


def test_a_service_that_is_none_is_refused(call):
    with pytest.raises(SystemExit) as stop:
        call("rpc", "Shell")
    assert stop.value.code == 64


# --- answer --------------------------------------------------------------------


def test_an_answer_comes_from_a_pipe(call, agent):
    agent.answers["status"] = {
        "ok": True,
        "prompt": {"kind": "crtext", "text": "code?"},
    }
    assert call("answer", "--control", agent.path, stdin="1234\n")[0] == 0
    assert agent.asked[-1][1]["password"] == "1234"


def test_nothing_asked_is_said(call, agent):
    agent.answers["status"] = {"ok": True, "prompt": None}
    status, _, errors = call("answer", "--control", agent.path, stdin="x\n")
    assert (status, errors) == (69, "nothing was asked\n")


def test_a_web_login_that_is_not_plain_is_not_opened(call, agent):
    prompt = {"kind": "url", "text": "http://10.0.0.1/"}
    agent.answers["status"] = {"ok": True, "prompt": prompt}
    status, _, errors = call("answer", "--control", agent.path)
    assert status == 69
    assert "refused" in errors


def test_portal_explains(call):
    status, output, _ = call("portal", "--explain")
    assert status == 0
    assert "NOT behind the VPN" in output


# --- menu ----------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() != 0, reason="the menu asks sudo for root")
def test_the_menu_switches_by_number_or_name(call, agent, tmp_path):
    profiles = Profiles(folder_of(tmp_path))
    words = ("--control", agent.path, "--folder", folder_of(tmp_path))
    assert call("menu", "switch", *words)[0] == 69
    profiles.store("home", PROFILE)
    profiles.store("work", PROFILE)
    for typed in ("2\n", "work\n"):
        assert call("menu", "switch", *words, stdin=typed)[0] == 0
        assert agent.asked[-1][1]["profile"] == "work"
    assert call("menu", "switch", *words, stdin="9\n")[0] == 64


@pytest.mark.skipif(os.geteuid() != 0, reason="the menu asks sudo for root")
def test_the_menu_imports_a_file(call, agent, tmp_path):
    path = tmp_path / "berlin.ovpn"
    path.write_text(PROFILE)
    words = ("--control", agent.path, "--folder", folder_of(tmp_path))
    status, output, _ = call("menu", "import", *words, stdin=f"{path}\n\n")
    assert status == 0
    assert "imported as berlin" in output
    assert call("menu", "import", *words, stdin="/dev/zero\nx\n")[0] == 64


# --- adopt ---------------------------------------------------------------------


@pytest.fixture
def root(tmp_path):
    """A qube in which other programs have been."""
    root = tmp_path / "root"
    config = root / "rw/config"
    for name, text in {
        "vpn/berlin.ovpn": PROFILE,
        "vpn/broken.ovpn": "client\nremote 192.0.2.1\nnonsense\n",
        "vpn/notes.conf": "hello\n",
        "rc.local": "#!/bin/sh\nopenvpn --config /rw/config/vpn/x.ovpn &\n",
        "qubes-firewall-user-script": "#!/bin/sh\n# openvpn was here once\n",
        "network-hooks.d/50-mine": "#!/bin/sh\necho mine\n",
        "NM-system-connections/work": "[connection]\ntype=vpn\n",
        "NM-system-connections/wifi": "[connection]\ntype=wifi\n",
    }.items():
        path = config / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return root


def test_what_is_found(root):
    found = [(f.kind, f.program, f.path.name) for f in find(root)]
    assert found == [
        ("profile", "Qubes-vpn-support", "berlin.ovpn"),
        ("profile", "Qubes-vpn-support", "broken.ovpn"),
        ("hook", "a script", "rc.local"),
        ("hook", "NetworkManager", "work"),
    ]


def test_adopt_lists_and_changes_nothing(call, root, tmp_path):
    before = sorted(root.rglob("*"))
    status, output, _ = call(
        "adopt", "--root", root, "--folder", folder_of(tmp_path)
    )
    assert status == 0
    assert output.count("profile of") == 2
    assert output.count("hook of") == 2
    assert sorted(root.rglob("*")) == before
    assert not folder_of(tmp_path).exists()


def test_adopt_imports_what_can_be_used_and_disables(call, root, tmp_path):
    words = ("--root", root, "--folder", folder_of(tmp_path))
    status, output, errors = call("adopt", "--import", "--disable", *words)
    assert status == 78
    assert "imported as berlin" in output
    assert "nonsense" in errors
    assert Profiles(folder_of(tmp_path)).names() == ("berlin",)
    disabled = root / "rw/config/rc.local.qubes-vpn-disabled"
    assert disabled.exists()
    assert not os.access(disabled, os.X_OK) or os.geteuid() == 0
    assert not disabled.stat().st_mode & 0o111
    assert [f.kind for f in find(root)] == ["profile", "profile"]


def test_a_hook_is_kept_word_by_word(root):
    (hook,) = [f for f in find(root) if f.path.name == "rc.local"]
    text = hook.path.read_text()
    assert disable(hook).read_text() == text


# --- selftest and report ---------------------------------------------------------


def looks(answers):
    def output(command):
        for key, answer in answers.items():
            if " ".join(command).startswith(key):
                return answer
        return 127, f"{command[0]}: not found"

    return output


SOUND = {
    "uname": (0, "6.12.40-1.qubes"),
    "nft --version": (0, "nftables v1.1.3"),
    "python3": (0, "Python 3.13.5"),
    "modinfo": (1, ""),
    "nft list table": (0, "chain egress { policy drop; }"),
    "ip": (0, "70: from all lookup 7078\n71: from all unreachable"),
    "systemctl is-active": (0, "active\n"),
    "systemctl show": (0, "sysinit.target qubes-vpn-lockdown.service\n"),
}


@pytest.fixture
def sound_root(tmp_path):
    for path in (
        "run/qubes-service/qubes-vpn",
        "run/qubes-service/qubes-firewall",
        "usr/lib/qubes/qubes-setup-dnat-to-ns",
        "rw/config/qubes-vpn/profiles",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    forward(tmp_path, "1")
    return tmp_path


def forward(root, value):
    path = root / "proc/sys/net/ipv4/ip_forward"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{value}\n")


def verdicts(answers, root):
    return {r.name: r.verdict for r in checks.run_checks(looks(answers), root)}


def test_a_sound_qube_has_nothing_bad(sound_root):
    assert checks.BAD not in verdicts(SOUND, sound_root).values()


@pytest.mark.parametrize(
    ("key", "answer", "name"),
    [
        ("nft list table", (1, "No such file"), "table inet qubes_vpn"),
        ("nft list table", (0, "policy accept"), "table netdev qubes_vpn"),
        ("ip", (0, "0: from all lookup local"), "routing rules -4"),
        ("systemctl is-active", (3, "failed\n"), "qubes-vpn-keeper.service"),
        ("systemctl is-active", (3, "failed\n"), "qubes-vpn-reverse.socket"),
        ("systemctl show", (0, "sysinit.target\n"), "qubes-network.service"),
    ],
)
def test_what_is_wrong_is_bad(sound_root, key, answer, name):
    assert verdicts({**SOUND, key: answer}, sound_root)[name] == checks.BAD


@pytest.mark.parametrize(
    ("there", "lock", "why"),
    [
        (f"run/qubes-vpn/{NOTE}", "inactive", "QV-405"),
        ("run/qubes-service/qubes-vpn", "failed", "the lock does not load"),
        ("run/qubes-service/qubes-vpn", "active", "provides no network"),
        ("run/qubes-service/qubes-network", "active", "has not turned it on"),
    ],
)
def test_it_is_said_why_nothing_is_forwarded(sound_root, there, lock, why):
    forward(sound_root, "0")
    (sound_root / there).parent.mkdir(exist_ok=True)
    (sound_root / there).write_text("")
    answers = {**SOUND, "systemctl is-failed": (1, f"{lock}\n")}
    found = checks.run_checks(looks(answers), sound_root)
    (result,) = [r for r in found if r.name == "ip_forward"]
    assert result.verdict == checks.BAD
    assert why in result.text


def test_selftest_runs_here_and_changes_nothing(call):
    status, output, _ = call("selftest")
    assert status in (0, 1)
    assert re.search(r"^\d+ bad$", output, re.MULTILINE)


TELLTALE = """
-----BEGIN PRIVATE KEY-----
c2VjcmV0
-----END PRIVATE KEY-----
remote vpn.example.com 203.0.113.7 2001:db8::7 00:16:3e:5e:6c:00
profile berlin-2 user maria token c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0
unit qubes-vpn-agent.service file /etc/resolv.conf at 12:34:56
"""


def test_redaction_hides_who_and_where_and_keeps_the_rest():
    redact = checks.Redactor(["berlin-2", "maria"])
    text = redact(TELLTALE)
    for word in (
        *("vpn.example.com", "203.0.113.7", "2001:db8", "00:16:3e", "c2Vjcm"),
        *("berlin", "maria"),
    ):
        assert word not in text, word
    for word in ("qubes-vpn-agent.service", "/etc/resolv.conf", "12:34:56"):
        assert word in text, word


def test_the_same_thing_keeps_its_name():
    redact = checks.Redactor()
    assert redact("203.0.113.7 203.0.113.8 203.0.113.7") == (
        "<address1> <address2> <address1>"
    )


def test_report_has_no_address_of_this_machine(call, agent):
    agent.answers["status"] = {
        "ok": True,
        "remote": {"host": "vpn.example.com", "address": "203.0.113.7"},
    }
    status, output, _ = call("report", "--control", agent.path)
    assert status == 0
    assert "== status" in output
    assert "203.0.113.7" not in output
    assert not re.search(r"\b\d{1,3}(\.\d{1,3}){3}\b", output)


def test_every_command_of_a_qube_is_on_the_man_page():
    from qubes_vpn.cli.main import COMMANDS

    page = Path(__file__).parents[3] / "docs/man/qubes-vpn.1"
    entries = " ".join(
        line for line in page.read_text().splitlines() if line.startswith(".B")
    )
    for command in COMMANDS:
        assert re.search(rf"\b{command}\b", entries), command


def test_the_status_is_json(call, agent):
    agent.answers["status"] = {"ok": True, "phase": "blocked"}
    output = call("rpc", "Status", "--control", agent.path)[1]
    assert json.loads(output)["phase"] == "blocked"
