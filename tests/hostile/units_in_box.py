# ruff: noqa: T201 -- what it prints is what the test reads
"""The package's units under systemd, and hostile code in the engine's place.

Run as a program by the systemd of a box (tests/hostile/box.sh).
"""

import json
import os
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path

import dns.query
from dns import message, rcode, reversename

from qubes_vpn.policy.dns import REVERSE_PORT

UNITS = ("lockdown", "keeper", "agent", "engine")
PROCESSES = UNITS[1:]
# systemd-analyze's figure, of 10, that each must not exceed.
EXPOSED = {"keeper": 2.5, "agent": 5.0, "engine": 1.5, "reverse": 1.5}
SECRET = Path("/etc/qubes-vpn/profile.ovpn")
RESULT = Path("/run/qubes-vpn/result.json")
PATIENCE = 60
INTRUDER = """\
[Service]
Type=oneshot
WatchdogSec=0
Restart=no
ExecStart=
ExecStart=/usr/bin/python3 -I -m tests.hostile.intruder -1 0 {secret} {pid} unit
StandardOutput=truncate:{result}
"""


def systemctl(*words, check=True):
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(f"{words}: {done.stdout}{done.stderr}")
    return done.stdout.strip()


def unit(name):
    return f"qubes-vpn-{name}.service"


def shown(name, what):
    return systemctl("show", "--value", f"--property={what}", unit(name))


def drop_in(name, text):
    folder = Path(f"/run/systemd/system/{unit(name)}.d")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.conf").write_text(text)
    systemctl("daemon-reload")


def the_units_start():
    """As they are shipped; the agent alone is told where QubesDB is."""
    drop_in("agent", "[Service]\nEnvironment=FAKE_QUBESDB=/run/qubesdb\n")
    try:
        for name in UNITS:
            systemctl("start", unit(name))
        time.sleep(3)
        for name in PROCESSES:
            assert shown(name, "ActiveState") == "active", name
            assert shown(name, "NRestarts") == "0", name
    except AssertionError:
        print(systemctl("status", *map(unit, UNITS), check=False))
        journal = ["journalctl", "--no-pager", "-n", "80", "-o", "cat"]
        print(subprocess.run(journal, capture_output=True, text=True).stdout)
        raise


def they_are_whom_the_units_say():
    users = {"keeper": "qubes-vpn-keeper", "engine": "qubes-vpn-engine"}
    for name, user in users.items():
        pid = shown(name, "MainPID")
        uid = subprocess.run(
            ["id", "-u", user], capture_output=True, text=True, check=True
        ).stdout.strip()
        fields = fields_of(pid)
        assert set(fields["Uid"].split()) == {uid}
        assert fields["NoNewPrivs"] == "1"
        assert fields["Seccomp"] == "2"
        wanted = 1 << 12 if name == "keeper" else 0
        assert int(fields["CapEff"], 16) == wanted, fields["CapEff"]


def their_memory_is_locked():
    """Where it may be: the box itself may be under a limit."""
    for name in PROCESSES:
        assert shown(name, "LimitMEMLOCK") == "infinity", name
        fields = fields_of(shown(name, "MainPID"))
        locked = int(fields["VmLck"].split()[0])
        print(f"FIGURE {name}: {fields['VmRSS']}, locked {locked} kB")
        free = may_lock(shown(name, "MainPID"))
        assert (locked > 1000) == free, name
        assert free or not may_lock(1)


def may_lock(pid):
    """Whether nothing limits how much memory a process may lock."""
    text = Path(f"/proc/{pid}/limits").read_text()
    return bool(
        re.search(r"^Max locked memory\s+unlimited", text, re.MULTILINE)
    )


def a_reverse_lookup_is_answered():
    """The first question starts the responder, which may do nothing else."""
    socket_unit = "qubes-vpn-reverse.socket"
    systemctl("start", socket_unit)
    assert shown("reverse", "ActiveState") == "inactive"
    name = reversename.from_address("10.137.0.11")
    query = message.make_query(name, "PTR")
    answer = dns.query.udp(query, "::1", timeout=PATIENCE, port=REVERSE_PORT)
    assert answer.rcode() == rcode.NXDOMAIN, answer
    assert shown("reverse", "ActiveState") == "active"
    pid = shown("reverse", "MainPID")
    fields = fields_of(pid)
    assert "0" not in fields["Uid"].split()
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert int(fields["CapEff"], 16) == 0
    ours, its = (os.readlink(f"/proc/{each}/ns/net") for each in ("self", pid))
    assert ours != its
    print(f"FIGURE reverse: {fields['VmRSS']}")


def fields_of(pid):
    """What /proc says of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return dict(re.findall(r"(\w+):\s+(.*)", status))


def what_systemd_thinks_of_them():
    for name in (*PROCESSES, "reverse"):
        said = subprocess.run(
            ["systemd-analyze", "security", "--no-pager", unit(name)],
            capture_output=True,
            text=True,
        ).stdout
        (figure,) = re.findall(r"exposure level for .*: ([0-9.]+)", said)
        print(f"FIGURE {name}: exposure {figure}")
        assert float(figure) <= EXPOSED[name]


def hostile_code_in_the_engines_place():
    """In the very unit, with nothing changed but the program."""
    SECRET.write_text("secret")
    SECRET.chmod(0o600)
    keeper = shown("keeper", "MainPID")
    systemctl("stop", unit("engine"))
    drop_in("engine", INTRUDER.format(secret=SECRET, pid=keeper, result=RESULT))
    systemctl("start", unit("engine"), check=False)
    got = json.loads(RESULT.read_text())
    for name, result in got.items():
        print(f"TRIED {name}: {result}")
    assert len(got) > 30
    assert not [name for name, result in got.items() if result == "done"]
    assert shown("keeper", "MainPID") == keeper
    assert shown("keeper", "ActiveState") == "active"


def callbacks_of_tls_work_there():
    """cffi makes them in memory that is written and run."""
    code = (
        "from OpenSSL import SSL;"
        " SSL.Context(SSL.TLS_METHOD).set_verify(1, lambda *a: True);"
        " print('set')"
    )
    words = f'/usr/bin/python3 -I -c "{code}"'
    text = INTRUDER.format(secret="", pid="", result=RESULT)
    lines = [
        f"ExecStart={words}" if "intruder" in line else line
        for line in text.splitlines()
    ]
    lines.append("StandardError=inherit")
    drop_in("engine", "\n".join(lines) + "\n")
    systemctl("start", unit("engine"), check=False)
    said = RESULT.read_text()
    assert said == "set\n", said


def the_same_succeeds_for_root():
    """The control: outside of the unit nearly all of it is done."""
    keeper = shown("keeper", "MainPID")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.hostile.intruder"),
            *("-1", "0", str(SECRET), keeper, "unit"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    got = json.loads(done.stdout)
    failed = {name for name, result in got.items() if result != "done"}
    print(f"CONTROL failed: {failed}")
    assert failed <= {
        *("sudo", "pkexec", "qrexec", "qubesdb", "hypervisor", "mark"),
        *("udp-elsewhere", "disk"),
    }


CHECKS = (
    the_units_start,
    they_are_whom_the_units_say,
    their_memory_is_locked,
    a_reverse_lookup_is_answered,
    what_systemd_thinks_of_them,
    hostile_code_in_the_engines_place,
    callbacks_of_tls_work_there,
    the_same_succeeds_for_root,
)


def main():
    for check in CHECKS:
        how = "ok"
        try:
            check()
        except Exception:  # noqa: BLE001 it is shown, and fails its test
            traceback.print_exc(file=sys.stdout)
            how = "FAILED"
        print(f"UNIT {check.__name__} {how}", flush=True)


if __name__ == "__main__":
    main()
