"""The formula, with Salt itself: applied twice, and compared with `qvm-vpn`.

Salt is installed from the package index into build/salt, once; it installs
there without its own requirements, which are named here.
"""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]

TOP = Path(__file__).resolve().parents[2]
STATES = Path(__file__).with_name("salt_states")
REQUIREMENTS = (
    *("salt", "tornado", "jinja2", "pyyaml", "msgpack", "distro"),
    *("looseversion", "packaging", "psutil", "requests", "jmespath", "pyzmq"),
    *("python-gnupg", "contextvars", "aiohttp", "croniter"),
)
PROFILE = "client\nremote 203.0.113.7 1194 udp\n"
PILLAR = {
    "qube": "sys-vpn",
    "source": "fedora-43-minimal",
    "template": "fedora-43-vpn",
    "autostart": True,
    "profile": "home",
    "profile-text": PROFILE,
    "credentials": "maria\ncorrect horse\n",
    "endpoints": ["203.0.113.7 udp 1194", "2001:db8::7 tcp 443"],
    "clients": ["work"],
}


def new_qube(klass="AppVM"):
    return {
        "klass": klass,
        "prefs": {},
        "features": {},
        "tags": [],
        "firewall": ["action=accept"],
    }


@pytest.fixture(scope="session")
def salt_call():
    """The program, installed if it is not there yet."""
    folder = TOP / "build/salt"
    program = folder / "bin/salt-call"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run(
            [folder / "bin/pip", "install", "-q", *REQUIREMENTS], check=True
        )
    return program


class Minion:
    """One machine that Salt manages: dom0, a template or a qube."""

    def __init__(self, program, folder, pillar):
        self.program = program
        self.folder = folder
        self.host = folder / "host.json"
        self.host.write_text(
            json.dumps(
                {
                    "fedora-43-minimal": new_qube("TemplateVM"),
                    "work": new_qube(),
                }
            )
        )
        (folder / "minion").write_text(
            json.dumps(
                {
                    "file_client": "local",
                    "root_dir": str(folder / "root"),
                    "file_roots": {"base": [str(TOP / "salt")]},
                    "pillar_roots": {"base": [str(folder / "pillar")]},
                    "states_dirs": [str(STATES)],
                    "nodegroups": {"dom0": "L@dom0"},
                    "fake_host": str(self.host),
                    "log_file": str(folder / "log"),
                }
            )
        )
        (folder / "pillar").mkdir()
        (folder / "pillar/top.sls").write_text("base: {'*': [vpn]}\n")
        (folder / "pillar/vpn.sls").write_text(
            json.dumps({"qubes-vpn": pillar})
        )

    def call(self, name, *words):
        done = subprocess.run(
            [
                *(self.program, "--local", "--out=json", f"--id={name}"),
                *("--log-level=error", f"--config-dir={self.folder}", *words),
            ],
            capture_output=True,
            text=True,
        )
        assert done.stdout, done.stderr
        return json.loads(done.stdout)["local"]

    def apply(self, name, *states):
        """Apply; returns the comments of what changed."""
        results = self.call(name, "state.apply", *states)
        assert isinstance(results, dict), results
        for state in results.values():
            assert state["result"], state
        return [s["__id__"] for s in results.values() if s["changes"]]

    def qubes(self):
        return json.loads(self.host.read_text())


@pytest.fixture
def minion(salt_call, tmp_path):
    folder = PILLAR | {"folder": str(tmp_path / "config")}
    return Minion(salt_call, tmp_path, folder)


def test_dom0_from_nothing_and_twice(minion):
    assert minion.apply("dom0", "qubes-vpn")
    assert minion.apply("dom0", "qubes-vpn") == []
    qubes = minion.qubes()
    assert qubes["work"]["prefs"] == {"netvm": "sys-vpn"}
    assert qubes["work"]["tags"] == ["qubes-vpn-client"]
    assert "fedora-43-vpn" in qubes


def test_it_makes_what_qvm_vpn_makes(minion, tmp_path, monkeypatch):
    minion.apply("dom0", "qubes-vpn")
    by_salt = minion.qubes()["sys-vpn"]
    by_command = made_by_command(tmp_path, monkeypatch)
    assert by_salt["template"] == by_command.template
    assert by_salt["label"] == by_command.label
    assert by_salt["features"] == by_command.features
    assert by_salt["firewall"] == by_command.firewall
    assert set(by_salt["tags"]) == by_command.tags - {"created-by-dom0"}
    prefs = {key: str(value) for key, value in by_salt["prefs"].items()}
    assert prefs == by_command.values


def made_by_command(tmp_path, monkeypatch):
    """Run `qvm-vpn create` against the fake qubesd; its qube."""
    sys.path.insert(0, str(TOP / "tests/dom0"))
    import dom0

    model = dom0.standard_model()
    features = dict(dom0.SUPPORTED)
    model.add("fedora-43-vpn", klass="TemplateVM", features=features)
    with dom0.running_host(model, tmp_path, monkeypatch) as host:
        lines = "".join(f"echo {line}\n" for line in PILLAR["endpoints"])
        host.service("sys-vpn", "qubesvpn.Endpoints", lines)
        host.service("sys-vpn", "qubesvpn.Import", "cat >/dev/null")
        host.file("work", "home.ovpn", PROFILE)
        status, _, _ = host.run(
            *("create", "sys-vpn", "--template=fedora-43-vpn", "--yes"),
            *("--autostart", "--profile=work:home.ovpn"),
        )
    assert status == 0
    return model.vms["sys-vpn"]


@pytest.mark.skipif(os.geteuid() != 0, reason="the files are root's")
def test_the_vpn_qube_gets_its_secrets_for_root_alone(minion, tmp_path):
    assert minion.apply("sys-vpn", "qubes-vpn")
    assert minion.apply("sys-vpn", "qubes-vpn") == []
    folder = tmp_path / "config"
    profile = folder / "profiles/home/profile.ovpn"
    assert profile.read_text() == PROFILE
    for path in (folder, *folder.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted
    for path in tmp_path.rglob("log*"):
        assert "correct horse" not in path.read_text()


def test_the_template_gets_the_package(minion):
    states = minion.call("fedora-43-vpn", "state.show_sls", "qubes-vpn")
    (state,) = states.values()
    assert {"pkgs": ["qubes-vpn"]} in state["pkg"] or any(
        "qubes-vpn" in part.get("pkgs", ())
        for part in state["pkg"]
        if isinstance(part, dict)
    )


def test_another_qube_gets_nothing(minion):
    assert minion.call("personal", "state.show_sls", "qubes-vpn") == {}


@pytest.mark.parametrize(
    "path", sorted((TOP / "salt/qubes-vpn").glob("*.top")), ids=lambda p: p.name
)
def test_each_top_file_names_states_that_are_there(minion, path):
    top = minion.call("dom0", "slsutil.renderer", str(path))
    for targets in top.values():
        for entries in targets.values():
            for entry in entries:
                if isinstance(entry, str):
                    name = entry.replace(".", "/")
                    assert (TOP / f"salt/{name}.sls").exists() or (
                        TOP / f"salt/{name}/init.sls"
                    ).exists()


def test_no_secret_and_no_bad_spelling_in_the_formula():
    for path in (TOP / "salt/qubes-vpn").iterdir():
        text = path.read_text()
        assert "saltenv=user" not in text
        assert "provides_network" not in text
        if path.suffix in (".sls", ".top"):
            assert not re.search(r"password|BEGIN", text)
