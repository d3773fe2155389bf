"""The units: systemd accepts them, and the sandbox is as tight as measured."""

import re
import subprocess

import pytest

pytestmark = pytest.mark.slow
UNITS = "usr/lib/systemd/system"
OURS = (
    *("lockdown.service", "lockdown-uplink@eth0.service", "keeper.service"),
    *("engine.service", "agent.service", "reverse.service", "reverse.socket"),
)
# what Debian and Fedora have, and the Qubes agent brings
TARGETS = (
    *("sysinit.target", "basic.target", "network-pre.target"),
    *("multi-user.target", "shutdown.target", "network.target"),
    "sockets.target",
)


@pytest.fixture(scope="module")
def root(install):
    """A root in which systemd finds all that our units name."""
    made = install("qubes-vpn-common", "qubes-vpn")
    for name in TARGETS:
        (made.path / UNITS / name).write_text("[Unit]\n")
    for name in ("usr/bin/python3", "bin/sh", "usr/bin/qvm-sync-clock"):
        path = made.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    return made


@pytest.mark.parametrize("name", OURS)
def test_systemd_accepts_the_unit(root, name):
    done = subprocess.run(
        [
            *("systemd-analyze", "verify", "--man=no", f"--root={root.path}"),
            f"qubes-vpn-{name}",
        ],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_verify_can_fail(root):
    path = root.path / UNITS / "broken.service"
    path.write_text("[Service]\nExecStart=/no/such/program\nNonsense=yes\n")
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={root.path}", "broken.service"],
        capture_output=True,
        text=True,
    )
    path.unlink()
    assert "Nonsense" in done.stderr


@pytest.mark.parametrize(
    ("name", "most"),
    [("keeper", 2.1), ("engine", 1.0), ("agent", 5.0), ("reverse", 1.0)],
)
def test_exposure(root, name, most):
    output = subprocess.run(
        [
            *("systemd-analyze", "security", "--offline=yes", "--no-pager"),
            root.path / UNITS / f"qubes-vpn-{name}.service",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (level,) = re.findall(r"Overall exposure level for .*: ([0-9.]+)", output)
    assert float(level) <= most


def settings(root, name):
    found = {}
    text = (root.path / UNITS / f"qubes-vpn-{name}.service").read_text()
    for line in text.splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_who_has_which_privilege(root):
    keeper, engine = settings(root, "keeper"), settings(root, "engine")
    assert keeper["CapabilityBoundingSet"] == ["CAP_NET_ADMIN"]
    assert keeper["Group"] == ["qubes-vpn"]
    assert engine["CapabilityBoundingSet"] == [""]
    assert engine["AmbientCapabilities"] == [""]
    assert engine["Group"] == ["qubes-vpn-engine"]
    assert engine["RestrictAddressFamilies"] == ["AF_UNIX"]


@pytest.mark.parametrize("name", ["keeper", "engine", "agent"])
def test_a_service_starts_again_for_ever(root, name):
    found = settings(root, name)
    assert found["Restart"] == ["always"]
    assert found["StartLimitIntervalSec"] == ["0"]
    assert "qubes-vpn-lockdown.service" in " ".join(found["Requires"])
    assert "/run/qubes-service/qubes-vpn" in found["ConditionPathExists"]


@pytest.mark.parametrize("name", ["lockdown", "lockdown-uplink@"])
def test_stopping_the_lock_does_nothing(root, name):
    found = settings(root, name)
    assert not {"ExecStop", "ExecStopPost", "ExecReload"} & set(found)
    for key in ("PartOf", "BindsTo", "Conflicts", "StopWhenUnneeded"):
        assert key not in found


def test_the_lock_needs_no_python_and_no_configuration(root):
    for command in settings(root, "lockdown")["ExecStart"]:
        assert command == "/bin/sh /usr/lib/qubes-vpn/lockdown.sh apply"
    script = (root.path / "usr/lib/qubes-vpn/lockdown.sh").read_text()
    assert "python" not in "\n".join(
        line for line in script.splitlines() if not line.startswith("#")
    )


def test_each_service_feeds_its_watchdog(root):
    from pathlib import Path

    from qubes_vpn.runtime.agent import LOOK_S
    from qubes_vpn.system.notify import WATCHDOG_S

    top = Path(__file__).resolve().parents[2] / "qubes_vpn"
    feeders = {
        "keeper": ("keeper/server.py", "_watchdog.feed(", WATCHDOG_S),
        "engine": ("runtime/engine.py", "_watchdog.feed(", WATCHDOG_S),
        "agent": ("runtime/qube.py", 'notify("WATCHDOG=1")', LOOK_S),
    }
    for name, (file, feeds, seconds) in feeders.items():
        found = settings(root, name)
        assert found["Type"] == ["notify"]
        assert int(found["WatchdogSec"][0]) > 2 * seconds
        assert feeds in (top / file).read_text(), name
